"""Layers of a KV cache that hold fewer keys than the sequence has positions, and still speak of positions.

transformers sizes masks, counts positions and slices prompts by what the layers of a cache report. A pruned layer goes
on reporting the length of the unpruned sequence, so that all of that stays right whichever layers hold less; only
`keys` and `values` are shorter. No models, no hooks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from adaptprune.errors import AdaptPruneError


class _Guarded(DynamicLayer):
    """Refuses to be continued by a model whose hooks are off: its masks would be those of the unpruned length."""

    expected = False

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


def check(cache: Any) -> None:
    """Raise AdaptPruneError for a cache whose layers cannot be shortened (static, quantised, ...)."""
    if cache is None:
        return
    for layer in getattr(cache, "layers", None) or ():
        if type(layer) not in PRUNED and type(layer) not in PRUNED.values():
            raise AdaptPruneError(
                f"{type(cache).__name__} cannot be pruned, its {type(layer).__name__}s do not grow token by token: use "
                "a dynamic cache (cache_implementation='dynamic')."
            )
    if not isinstance(cache, Cache) or getattr(cache, "is_compileable", False):
        raise AdaptPruneError(
            f"{type(cache).__name__} cannot be pruned: use a dynamic cache (cache_implementation='dynamic')."
        )


def shorten(cache: Cache, index: int, total: int) -> None:
    """Let one layer report `total` positions, however many it holds."""
    layer: Any = cache.layers[index]
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
    cache.layers[index].reset()


def expect(cache: Any, index: int) -> None:
    """Tell a pruned layer that the next forward comes with masks cut to what it holds."""
    layers = getattr(cache, "layers", ())
    if index < len(layers) and isinstance(layers[index], _Guarded):
        layers[index].expected = True


def window(cache: Any, index: int) -> int | None:
    """The sliding window of one layer, in positions; None if it sees everything (or there is no cache)."""
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    return layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None


def visible(cache: Any, index: int, queries: int) -> int | None:
    """How many keys a sliding layer's attention is handed, `queries` new ones included; None: all it ever had."""
    width = window(cache, index)
    if width is None:
        return None
    layer = cache.layers[index]
    held = layer.keys.shape[-2] if layer.is_initialized and layer.keys.ndim > 1 else 0
    # a layer that records its past (assisted decoding) holds more than it hands out
    return queries + (min(held, width - 1) if getattr(layer, "record_past", False) else held)
