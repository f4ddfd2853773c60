"""A decoder layer: its attention, the keys that this compares, and which layers have a memory of another kind.

Hybrid decoders have layers without keys (linear attention, convolution, state space, or experts alone), and some
layers read the keys of an earlier one. What a layer is, is told by its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.versions import misfit

#: What a decoder layer may call its attention, and by what an attention is known among other mixers.
ATTENTION = ("self_attn", "attention", "attn", "mixer")
QUERIES = ("q_proj", "q_b_proj", "query_key_value", "qkv_proj")
#: What keys are projected by; the second is that of latent attention, to what its keys are made of.
KEYS = ("k_proj", "kv_a_proj_with_mqa")
#: The norm in front of the attention.
NORMS = ("input_layernorm", "attn_norm", "operator_norm", "norm")
#: The norm behind all layers.
FINAL = ("norm", "final_layernorm", "final_norm", "embedding_norm")
#: All norms of a layer that has none in front: each stands behind what it belongs to (EXAONE 4).
BEHIND = {"post_attention_layernorm", "post_feedforward_layernorm"}


def finds_attention(layer: nn.Module) -> nn.Module | None:
    """The self-attention of a decoder layer; None for one that has another memory than keys, or none."""
    found = (getattr(layer, name, None) for name in ATTENTION)
    return next((each for each in found if isinstance(each, nn.Module) and _has(each, *KEYS, *QUERIES)), None)


def _has(module: nn.Module, *names: str) -> bool:
    return any(isinstance(getattr(module, name, None), nn.Module) for name in names)


def attention_of(layer: nn.Module) -> nn.Module:
    """The self-attention of a decoder layer; AdaptPruneError for one without it."""
    attention = finds_attention(layer)
    if attention is None:
        raise AdaptPruneError(f"{type(layer).__name__} has none of {', '.join(ATTENTION)}: it cannot be watched.")
    return attention


def without_keys(config: Any, layers: Sequence[nn.Module], sources: Mapping[int, int]) -> frozenset[int]:
    """The layers of a decoder with this config that do not attend: they have a memory without keys, or none.

    `sources` are those that read another layer's keys (`key_sources`).
    """
    apart = {number for number, each in enumerate(kv.layers_of(kv.new_cache(config))) if kv.keyless(each)}
    apart -= set(sources)
    return frozenset(number for number, layer in enumerate(layers) if number in apart or finds_attention(layer) is None)


def key_sources(layers: Sequence[nn.Module]) -> dict[int, int]:
    """Layers without keys of their own, and the layer whose keys each reads: the last one before it of its kind."""
    last: dict[Any, int] = {}
    sources: dict[int, int] = {}
    for number, layer in enumerate(layers):
        attention: Any = finds_attention(layer)
        if attention is None:
            continue
        kind = getattr(attention, "layer_type", None) or bool(getattr(attention, "is_sliding", False))
        if getattr(attention, "is_kv_shared_layer", False):
            sources[number] = last[kind]
        else:
            last[kind] = number
    return sources


def chosen_before(layers: Sequence[nn.Module], first: int) -> bool:
    """Whether a layer from `first` on reads the keys that a layer before it has chosen (shared sparse attention)."""
    for layer in layers[first:]:
        skips = getattr(finds_attention(layer), "skip_topk", None)
        if skips is not None:
            return bool(skips)
    return False


def chooses(layers: Sequence[nn.Module]) -> bool:
    """Whether some layer's attention chooses among its keys (sparse attention)."""
    return any(isinstance(getattr(finds_attention(layer), "indexer", None), nn.Module) for layer in layers)


def mixes_streams(layer: nn.Module) -> bool:
    """Whether a layer has several streams of states, which it mixes by itself before its attention reads them."""
    return any("altup" in name or name.endswith(("_hc", "hyper_connection")) for name, _ in layer.named_children())


def has_keys(layer: nn.Module) -> bool:
    """Whether a decoder layer makes keys of its own."""
    attention = finds_attention(layer)
    return attention is not None and _has(attention, *KEYS)


def key_projection(layer: nn.Module) -> nn.Module:
    """The projection that a decoder layer's keys come from; AdaptPruneError if it makes none."""
    attention = attention_of(layer)
    for name in KEYS:
        projection = getattr(attention, name, None)
        if isinstance(projection, nn.Module):
            return projection
    raise AdaptPruneError(
        f"{type(attention).__name__} has no {' or '.join(KEYS)}, so keys cannot be compared: "
        "use a method without keys (fastv), or another layer."
    )


def normalised(layer: nn.Module, states: Tensor) -> Tensor:
    """Hidden states as a layer's attention is handed them."""
    norm = next((found for name in NORMS if isinstance(found := getattr(layer, name, None), nn.Module)), None)
    if norm is None and {name for name, _ in layer.named_children() if "norm" in name} == BEHIND:
        return states
    if norm is None:
        raise AdaptPruneError(
            f"{type(layer).__name__} has none of {', '.join(NORMS)}: use keys='previous' or 'reference'."
        )
    out: Tensor = norm(states)
    return out


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm behind a decoder's last layer."""
    found = next((each for name in FINAL if isinstance(each := getattr(decoder, name, None), nn.Module)), None)
    if found is None:
        raise AdaptPruneError(
            f"{type(decoder).__name__} has none of {', '.join(FINAL)}: use a rule that does not compare final states."
        )
    return found


def find(config: Any, layers: Sequence[nn.Module], apart: frozenset[int], sources: Mapping[int, int]) -> str:
    """Check that every layer whose cache holds keys has an attention that is known; says how many layers there are.

    `apart` are the layers that do not attend, `sources` those that read another's keys.
    """
    for number, (layer, memory) in enumerate(zip(layers, kv.layers_of(kv.new_cache(config)), strict=False)):
        if not kv.known(memory):
            raise AdaptPruneError(
                f"layer {number} keeps a {type(memory).__name__} in the KV cache, which does not grow token by token: "
                "this model cannot be pruned."
            )
        if number in apart and not kv.keyless(memory):
            raise misfit(
                "a layer's attention",
                f"{type(layer).__name__} {number} has keys in its cache, and none of {', '.join(ATTENTION)}",
            )
    kinds = [f"{len(layers) - len(apart) - len(sources)} layers with keys"]
    kinds += [f"{len(sources)} that read another's"] if sources else []
    kinds += [f"{len(apart)} with another memory or none"] if apart else []
    return ", ".join(kinds)
