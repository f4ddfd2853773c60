"""Attention: which implementation runs, and how one layer's is seen without changing what it computes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.versions import misfit

NAME = "adaptprune_probe"
#: Attribute of a watched attention module: its own config, and whom to tell. There, so that all go together.
WATCH = "_adaptprune_watch"
EAGER = "eager_attention_forward"


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
    """Call ``watch(query, key, attention_mask, scaling, softcap, sliding_window)`` before every attention of a module.

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
    watch(query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap"), kwargs.get("sliding_window"))
    return _function(module, config)(_Original(module, config), query, key, value, attention_mask, **kwargs)


def find(attentions: list[nn.Module]) -> str:
    """Check what this file assumes of the attention modules that are to be watched; says how they are."""
    for name in ("register", "get_interface"):
        if not callable(getattr(ALL_ATTENTION_FUNCTIONS, name, None)):
            raise misfit("the attention interface", f"AttentionInterface has no {name}")
    for attention in attentions:
        if not hasattr(getattr(attention, "config", None), "_attn_implementation"):
            raise misfit("the attention interface", f"{type(attention).__name__} has no config that names its backend")
    return f"AttentionInterface, {implementation(attentions[0].config)}" if attentions else "AttentionInterface"
