"""Attention: which implementation runs, and how one layer's is seen without changing what it computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.cache import NAMES, parameters
from adaptprune.hooks.seams.versions import misfit

NAME = "adaptprune_probe"
#: Attribute of a watched attention module: its own config, and whom to tell. There, so that all go together.
WATCH = "_adaptprune_watch"
#: The same for a module that is only asked what it would hand on.
PEEK, KEEP = "adaptprune_peek", "_adaptprune_peek"
EAGER = "eager_attention_forward"


class Watched(NamedTuple):
    """What an attention function is handed.

    Attributes
    ----------
    query, key : Tensor, (B, H, L, d) and (B, H_kv, S, d)
        Grouped heads not repeated.
    mask
        None, 2-D, 4-D (boolean or additive) or a block mask.
    scaling, softcap, window
    lengths : Tensor or None, (parts + 1,)
        Where the parts of a sequence begin that see one another and nothing else, and where the last one ends.
    """

    query: Tensor
    key: Tensor
    mask: Any
    scaling: float | None
    softcap: float | None
    window: int | None
    lengths: Tensor | None = None

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled products of queries (B, T, H, d) and keys (B, H_kv, S, d): (B, H, T, S), float32."""
        batch, count, heads, width = query.shape
        grouped = query.float().view(batch, count, key.shape[1], heads // key.shape[1], width)
        scores = torch.einsum("btgrd,bgsd->bgrts", grouped, key.float()).flatten(1, 2)
        scores = scores * (width**-0.5 if self.scaling is None else self.scaling)
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def backend(decoder: nn.Module) -> str:
    """The attention implementation of a decoder at this moment: `set_attn_implementation` may change it at any time."""
    return implementation(decoder.config)


def implementation(config: Any) -> str:
    """The name of the attention implementation that a config asks for."""
    return getattr(config, "_attn_implementation", None) or "eager"


def known_implementations() -> list[str]:
    """Names that `attn_implementation` may have."""
    return ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]


class _Original:
    """The attention module as its own implementation knows it: flash attention reads its name from `config`."""

    def __init__(self, module: nn.Module, config: Any) -> None:
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def install(attention: nn.Module, watch: Callable[..., None]) -> tuple[Callable[[], None], Callable[[], bool]]:
    """Call ``watch`` with what `Watched` is made of before every attention of a module.

    Only this module gets a copy of its config that names a registered function, which calls the implementation that
    the model was loaded with. Returns what puts the module back as it was, and what tells whether it is still watched.
    """
    config: Any = attention.config
    _function(attention, config)  # fails now rather than in the first forward
    ALL_ATTENTION_FUNCTIONS.register(NAME, _probe)
    changed = copy.copy(config)
    changed._attn_implementation = NAME
    attention.config = changed
    setattr(attention, WATCH, (config, torch.compiler.disable(watch)))

    def remove() -> None:
        attention.config = config
        delattr(attention, WATCH)

    return remove, lambda: attention.config is changed


def _function(attention: nn.Module, config: Any) -> Callable[..., Any]:
    name = implementation(config)
    eager = getattr(sys.modules[type(attention).__module__], EAGER, None)
    if name == "eager" and eager is None:
        raise AdaptPruneError(
            f"cannot watch the eager attention of {type(attention).__name__}: "
            "load the model with attn_implementation='sdpa'."
        )
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return found


def _probe(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    config, watch = getattr(module, WATCH)
    watch(query, key, attention_mask, *_options(kwargs))
    return _function(module, config)(_Original(module, config), query, key, value, attention_mask, **kwargs)


def peek(attention: nn.Module, states: Tensor, arguments: Mapping[str, Any]) -> Watched:
    """What an attention module would hand to its attention function, which is not run.

    Parameters
    ----------
    states : Tensor, (B, S, D)
        Normalised.
    arguments : mapping
        Those of its layer; the module is handed what it takes of them, no mask and no cache.
    """
    config: Any = attention.config
    seen: list[Any] = []

    def keep(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append(Watched(query, key, None, *_options(kwargs)))
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    ALL_ATTENTION_FUNCTIONS.register(PEEK, _peeked)
    changed = copy.copy(config)
    changed._attn_implementation = PEEK
    given = {name: value for name, value in arguments.items() if name in parameters(attention)}
    given.update({name: None for name in ("attention_mask", *NAMES) if name in parameters(attention)})
    attention.config = changed
    setattr(attention, KEEP, keep)
    try:
        attention.forward(states, **given)  # past its hooks, which would count it
    finally:
        attention.config = config
        delattr(attention, KEEP)
    if not seen:
        raise misfit("the attention interface", f"{type(attention).__name__} did not ask for its attention function")
    return seen[0]


def _options(kwargs: Mapping[str, Any]) -> list[Any]:
    """What `Watched` has behind the mask."""
    return [kwargs.get(name) for name in ("scaling", "softcap", "sliding_window", "cu_seq_lens_q")]


def _peeked(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return getattr(module, KEEP)(module, *args, **kwargs)


def find(attentions: list[nn.Module]) -> str:
    """Check what this file assumes of the attention modules that are to be watched; says how they are."""
    for name in ("register", "get_interface"):
        if not callable(getattr(ALL_ATTENTION_FUNCTIONS, name, None)):
            raise misfit("the attention interface", f"AttentionInterface has no {name}")
    for attention in attentions:
        if not hasattr(getattr(attention, "config", None), "_attn_implementation"):
            raise misfit("the attention interface", f"{type(attention).__name__} has no config that names its backend")
    return f"AttentionInterface, {implementation(attentions[0].config)}" if attentions else "AttentionInterface"
