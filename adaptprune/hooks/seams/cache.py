"""The KV cache: the argument it travels by, its classes, and layers that hold less than they report.

transformers sizes masks, counts positions and slices prompts by what the layers of a cache report. A pruned layer goes
on reporting the length of the unpruned sequence, so that all of that stays right whichever layers hold less; only
`keys` and `values` are shorter. No models, no hooks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils as home
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.versions import misfit

__all__ = ["Cache", "CacheLayerMixin", "DynamicCache", "cache_in", "cache_name", "cache_of", "handing"]

#: By which argument a cache is handed on and returned, newest first: `cache` since 5.24, `past_key_values` before.
#: Users may still say the old one, so that both are read at every call.
NAMES = ("cache", "past_key_values")


# -- how a cache travels -----------------------------------------------------------------------------------------------


def parameters(module: Any) -> tuple[str, ...]:
    """The arguments of a module's forward by name, in their order.

    `torch.compile`'s wrapper is looked through, and so is a forward that somebody put over the module's own to hand
    everything on (``*args, **kwargs``).
    """
    module = getattr(module, "_orig_mod", module)
    forward = getattr(module.forward, "__func__", module.forward)
    names, hands_on = _parameters(forward)
    return _parameters(type(module).forward)[0] if hands_on else names


@functools.cache
def _parameters(function: Any) -> tuple[tuple[str, ...], bool]:
    found = inspect.signature(function).parameters
    rest = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    names = tuple(name for name, each in found.items() if name != "self" and each.kind not in rest)
    return names, any(each.kind in rest for each in found.values())


def cache_name(module: Any) -> str:
    """The argument of a module's forward that takes the cache.

    Raises
    ------
    AdaptPruneError
        It takes it by no name that is known here.
    """
    named = parameters(module)
    for name in NAMES:
        if name in named:
            return name
    raise misfit("the cache's argument", f"{type(module).__name__}.forward takes none of {', '.join(NAMES)}")


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call; None without one.

    Raises
    ------
    AdaptPruneError
        A cache is handed on by a name that is not known here, so that it would be missed elsewhere.
    """
    for name in NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    for name, value in arguments.items():
        if isinstance(value, Cache):
            raise misfit("the cache's argument", f"a {type(value).__name__} is handed on as {name!r}")
    return None


def cache_of(output: Any) -> Any:
    """The cache in what a model or `generate()` returned, by whatever name; None without one."""
    values = (
        output if isinstance(output, (tuple, list)) else vars(output).values() if hasattr(output, "__dict__") else ()
    )
    return next((value for value in values if isinstance(value, Cache)), None)


def handing(module: Any, cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to a module's forward."""
    return {cache_name(module): cache}


def new_cache(config: Any = None) -> DynamicCache:
    """An empty cache that grows; with a decoder's config, its sliding layers keep their window alone."""
    return DynamicCache() if config is None else DynamicCache(config=config)


def seen(cache: Any) -> int:
    """Positions that a cache has; 0 without one. Layers without keys do not count them."""
    return int(cache.get_seq_length()) if cache is not None else 0


# -- layers that hold less ---------------------------------------------------------------------------------------------


class _Guarded(DynamicLayer):
    """Refuses to be continued by a model whose hooks are off: its masks would be those of the unpruned length.

    Remembers how its rows were moved (`order`), since rows may hold different tokens.
    """

    expected = False
    order: Tensor | None = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._move(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._move(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = self.keys.shape[0] if held(self) else 0
        super().batch_repeat_interleave(repeats)
        self._move(torch.arange(rows).repeat_interleave(repeats))

    def _move(self, rows: Tensor) -> None:
        rows = (rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).cpu()
        self.order = rows if self.order is None else self.order[rows]

    def update(self, *states: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.expected:
            raise AdaptPruneError(
                "this KV cache was filled under pruning, and the model is not pruned now: continue it under the same "
                "pruning, or use a new cache."
            )
        self.expected = False
        found: tuple[Tensor, Tensor] = super().update(*states, **kwargs)
        return found


class PrunedLayer(_Guarded):
    """Full attention: `dropped` entries are missing from `keys` and `values`."""

    dropped = 0

    def get_seq_length(self) -> int:
        held: int = super().get_seq_length()
        return held + self.dropped if held else 0

    def reset(self) -> None:
        self.dropped = 0
        super().reset()


class PrunedSlidingLayer(_Guarded, DynamicSlidingWindowLayer):
    """Sliding window: holds the last ``window - 1`` kept entries, which reach further back than the window."""

    def crop(self, tokens_to_remove: int) -> None:
        total: int = self.get_seq_length()
        super().crop(tokens_to_remove)  # below the window it would count what it holds
        self.cumulative_length = total - abs(tokens_to_remove)


PRUNED: dict[type, type] = {DynamicLayer: PrunedLayer, DynamicSlidingWindowLayer: PrunedSlidingLayer}

if (indexed := getattr(home, "DynamicIndexedLayer", None)) is not None:
    # holds, beside keys and values, what an indexer ranks them by: as many of these as of those
    PRUNED[indexed] = type("PrunedIndexedLayer", (PrunedLayer, indexed), {})

#: Layers of a cache that hold no keys: the memory of linear attention or a convolution, or nothing at all.
KEYLESS = tuple(
    found for name in ("LinearAttentionLayer", "DummyLayer") if (found := getattr(home, name, None)) is not None
)


def keyless(layer: Any) -> bool:
    """Whether a layer of a cache holds no keys, whatever it remembers otherwise."""
    return isinstance(layer, KEYLESS) and not isinstance(layer, DynamicLayer)


def known(layer: Any) -> bool:
    """Whether a layer of a cache holds no keys, or such as can be shortened."""
    return type(layer) in PRUNED or type(layer) in PRUNED.values() or keyless(layer)


def check(cache: Any) -> None:
    """Raise AdaptPruneError for a cache whose layers cannot be shortened (static, quantised, ...)."""
    if cache is None:
        return
    for layer in layers_of(cache):
        if not known(layer):
            raise AdaptPruneError(
                f"{type(cache).__name__} cannot be pruned, its {type(layer).__name__}s do not grow token by token: use "
                "a dynamic cache (cache_implementation='dynamic')."
            )
    if not isinstance(cache, Cache) or getattr(cache, "is_compileable", False):
        raise AdaptPruneError(
            f"{type(cache).__name__} cannot be pruned: use a dynamic cache (cache_implementation='dynamic')."
        )


def layers_of(cache: Any) -> list[Any]:
    """The layers of a cache, one per decoder layer; some may be missing as long as nothing was written to them."""
    return getattr(cache, "layers", None) or []


def shorten(cache: Cache, index: int, total: int) -> None:
    """Let one layer report `total` positions, however many it holds; nothing for one without keys."""
    layers = layers_of(cache)
    layer: Any = layers[index] if index < len(layers) else None
    if layer is None or keyless(layer):
        return
    if type(layer) in PRUNED:
        pruned: Any = object.__new__(PRUNED[type(layer)])
        pruned.__dict__.update(layer.__dict__)
        cache.layers[index] = layer = pruned
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = total
    else:
        layer.dropped = total - layer.keys.shape[-2]


def empty(cache: Cache, index: int) -> None:
    """Let one layer forget everything."""
    layer: Any = cache.layers[index]
    layer.reset()
    layer.keys = layer.values = None  # before 5.20, `reset` zeroes what the layer holds and goes on counting it
    layer.is_initialized = False


def expect(cache: Any, index: int) -> None:
    """Tell a pruned layer that the next forward comes with masks cut to what it holds."""
    layers = layers_of(cache)
    if index < len(layers) and isinstance(layers[index], _Guarded):
        layers[index].expected = True


def moved(cache: Any) -> Tensor | None:
    """Which of its rows the rows of a cache were when this was asked before, (B,) int64; None if nothing has moved."""
    found = None
    for layer in layers_of(cache):
        if isinstance(layer, _Guarded) and layer.order is not None:
            found, layer.order = layer.order, None
    return found


def lacks(layer: Any) -> bool:
    """Whether a layer holds fewer keys than the positions that it reports."""
    if not isinstance(layer, _Guarded):
        return False
    reported, window = int(layer.get_seq_length()), width(layer)
    return held(layer) < (reported if window is None else min(reported, window - 1))


def held(layer: Any) -> int:
    """How many keys a layer holds."""
    keys = getattr(layer, "keys", None)
    return int(keys.shape[-2]) if keys is not None and keys.ndim > 1 else 0


def contents(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Keys and values of a layer, (B, H, S, d) each; None while it is empty."""
    return filled(layer) if held(layer) else None


def filled(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that is not empty, (B, H, S, d) each."""
    return layer.keys, layer.values


def nbytes(cache: Any, first: int | None = None) -> int:
    """Bytes of all keys and values; with `first`, of as many positions in every layer."""
    pairs = [pair for layer in layers_of(cache) if (pair := contents(layer)) is not None]
    return sum(
        tensor.nbytes if first is None else tensor.nbytes // tensor.shape[-2] * first
        for pair in pairs
        for tensor in pair
    )


def replace(layer: Any, keys: Tensor, values: Tensor) -> None:
    """Let a layer hold these."""
    layer.keys, layer.values = keys, values


def window(cache: Any, index: int) -> int | None:
    """The sliding window of one layer, in positions; None if it sees everything (or there is no cache)."""
    layers = layers_of(cache)
    return width(layers[index]) if index < len(layers) else None


def width(layer: Any) -> int | None:
    """The sliding window of a layer of a cache, in positions; None if it sees everything."""
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def in_chunks(config: Any) -> bool:
    """Whether a decoder with this config attends in chunks, which its cache takes for sliding windows."""
    return any("chunked" in kind for kind in getattr(config, "layer_types", None) or ())


def visible(cache: Any, index: int, queries: int) -> int | None:
    """How many keys a sliding layer's attention is handed, `queries` new ones included; None: all it ever had."""
    size = window(cache, index)
    if size is None:
        return None
    layer = layers_of(cache)[index]
    count = held(layer)
    # a layer that records its past (assisted decoding) holds more than it hands out
    return queries + (min(count, size - 1) if records_past(layer) and _hands_out_window() else count)


def records_past(layer: Any) -> bool:
    """Whether a sliding layer holds on to what left its window, until it is cropped."""
    return bool(getattr(layer, "record_past", False))


@functools.cache
def _hands_out_window() -> bool:
    """Whether a layer that records its past hands out its window alone (since 5.22) or all that it holds."""
    layer, states = DynamicSlidingWindowLayer(sliding_window=2), torch.zeros(1, 1, 4, 1)
    layer.activate_past_recording()
    layer.update(states, states)
    keys, _ = layer.update(states[:, :, :1], states[:, :, :1])
    return int(keys.shape[-2]) < 5


def find(decoder: Any, layers: list[Any]) -> str:
    """Check what this file assumes; says how the cache travels."""
    name = cache_name(decoder)
    inner = {cache_name(layer) for layer in layers}
    if inner != {name}:
        raise misfit("the cache's argument", f"the decoder takes {name!r} and its layers {', '.join(sorted(inner))}")
    for kind, more in ((DynamicLayer, ()), (DynamicSlidingWindowLayer, ("cumulative_length", "sliding_window"))):
        layer = kind(sliding_window=2) if more else kind()
        states = torch.zeros(1, 1, 1, 1)
        layer.update(states, states)
        for attribute in ("keys", "values", "is_initialized", "get_seq_length", "get_mask_sizes", "crop", *more):
            if not hasattr(layer, attribute):
                raise misfit("the cache's layers", f"{kind.__name__} has no {attribute!r}")
        if held(layer) != 1 or layer.get_seq_length() != 1:
            raise misfit("the cache's layers", f"a {kind.__name__} with one key in it reports {layer.get_seq_length()}")
    if not isinstance(getattr(DynamicCache(), "layers", None), list):
        raise misfit("the cache's layers", "a DynamicCache has no list of layers")
    return f"{name}=, {DynamicLayer.__name__} and {DynamicSlidingWindowLayer.__name__}"
