"""The parts of a decoder that the hooks need, and what of it cannot be pruned."""

from __future__ import annotations

from typing import Any

from torch import nn

from adaptprune.errors import AdaptPruneError


def attention_of(layer: nn.Module) -> nn.Module:
    """The self-attention of a decoder layer."""
    attention = getattr(layer, "self_attn", None)
    if not isinstance(attention, nn.Module):
        raise AdaptPruneError(f"{type(layer).__name__} has no self_attn: this decoder cannot be watched.")
    return attention


def key_projection(layer: nn.Module) -> nn.Module:
    """The key projection of a decoder layer."""
    projection = getattr(attention_of(layer), "k_proj", None)
    if not isinstance(projection, nn.Module):
        raise AdaptPruneError(
            f"{type(attention_of(layer)).__name__} has no k_proj, so keys cannot be compared: "
            "use a method without keys (fastv)."
        )
    return projection


def check_window(config: Any, backend: str, call: Any) -> None:
    """Refuse a prompt longer than a sliding window to kernels that count places in the cache rather than positions."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or any("sliding" in kind for kind in kinds)
    if backend.startswith("flash") and window is not None and slides and call.length > 1 and call.total > window:
        raise AdaptPruneError(
            f"the prompt has {call.total} tokens, more than the decoder's sliding window of {window}, which flash "
            "attention would count in kept tokens instead of positions: load the model with attn_implementation='sdpa'."
        )


def check_checkpointing(decoder: nn.Module) -> None:
    """Refuse gradient checkpointing, which runs the layers again after the forward whose tokens were dropped."""
    if decoder.training and any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules()):
        raise AdaptPruneError(
            "gradient checkpointing runs decoder layers again in the backward pass, when it is no longer known what "
            "was pruned: call model.gradient_checkpointing_disable()."
        )
