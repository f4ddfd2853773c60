"""The vision tower: its layers, their attention, its class token, and what else stands between pixels and features."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from adaptprune.hooks.seams.parts import Parts

#: What a tower's layer may call its attention.
ATTENTION = ("self_attn", "attention", "attn")
#: By what an attention is known whose implementation can be looked at.
INTERFACE = "ALL_ATTENTION_FUNCTIONS"
#: Names of the parameter that stands in front of a picture's patches, or behind them.
CLASS = ("class_embedding", "cls_token", "class_token")
#: Parts of paths: of what reads sound, and of pictures that are made rather than read.
OTHER = ("audio", "sound", "speech", "vqmodel")
NO_PROJECTOR = "no module of it makes features of its tower's states alone, token by token"
#: Model types of which that is known before they run: they reshape, pool or interpolate pictures between the weights of
#: their projector, or it is not the last that features go through. Of others it is found out when they first encode.
APART = frozenset(
    {
        "aya_vision", "cohere2_vision", "ernie4_5_vl_moe", "gemma3", "glm46v", "glm4v", "glm4v_moe", "glm_ocr",
        "granite_docling", "hunyuan_vl", "hyperclovax_vision_v2", "lfm2_vl", "lighton_ocr", "llama4", "llava_onevision",
        "mistral3", "ovis2", "paddleocr_vl", "step3p7",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """The layers of one tower. Some models have one for pictures and another for videos.

    Attributes
    ----------
    path : str
        Where the list of layers is in the base.
    layers : list of nn.Module
    attentions : list of nn.Module or None
        The attention of each layer; None where it has none that can be looked at.
    class_width : int
        Of its class token; 0 if it has none.
    """

    path: str
    layers: list[nn.Module]
    attentions: list[nn.Module | None]
    class_width: int = 0


def stacks(found: Parts) -> list[Stack]:
    """The towers of a model whose attention can be looked at."""
    listed: list[Stack] = []
    for path, module in _outside(found):
        if not isinstance(module, nn.ModuleList) or any(listed_in(path, each) for each in listed):
            continue
        attentions = [_attention(layer) for layer in module]
        if any(attention is not None for attention in attentions):
            listed.append(Stack(path, list(module), attentions, _class_width(found.base, path)))
    return listed


def listed_in(path: str, stack: Stack) -> bool:
    """Whether a module is inside the layers of a tower."""
    return f"{path}.".startswith(f"{stack.path}.")


def _outside(found: Parts) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base that are no part of its decoder and read pictures, with their paths."""
    inside = {id(module) for module in found.decoder.modules()}
    for path, module in found.base.named_modules():
        if id(module) not in inside and not any(word in path for word in OTHER):
            yield path, module


def _attention(layer: nn.Module) -> nn.Module | None:
    for name in ATTENTION:
        attention = getattr(layer, name, None)
        forward = inspect.unwrap(type(attention).forward) if isinstance(attention, nn.Module) else None
        named = INTERFACE in getattr(getattr(forward, "__code__", None), "co_names", ())
        if named and hasattr(getattr(attention, "config", None), "_attn_implementation"):
            return attention
    return None


def _class_width(base: nn.Module, path: str) -> int:
    """Of a tower's class token, whose parameter is beside the layers or in what embeds the patches; 0 for none."""
    tower = path.split(".")[0]
    return next(
        (
            parameter.shape[-1]
            for name, parameter in base.named_parameters()
            if name.startswith(f"{tower}.") and not name.startswith(f"{path}.") and name.rpartition(".")[2] in CLASS
        ),
        0,
    )


# -- the projector -----------------------------------------------------------------------------------------------------


def behind(found: Parts, stack: Stack) -> list[tuple[str, nn.Module]]:
    """The modules beside a tower's layers that have weights of their own or hold such, outermost first."""
    return [
        (path, module)
        for path, module in _outside(found)
        if path
        and not listed_in(path, stack)
        and not f"{stack.path}.".startswith(f"{path}.")
        and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        and any(True for _ in module.parameters())
    ]


def selected(found: Parts, stack: Stack) -> int | None:
    """The layer whose output a model of LLaVA's kind projects without its class token; None for all others."""
    config: Any = found.model.config
    chosen, count = getattr(config, "vision_feature_layer", None), len(stack.layers)
    if getattr(config, "vision_feature_select_strategy", None) != "default" or not stack.class_width:
        return None
    if not isinstance(chosen, int) or not -count <= chosen <= count or chosen == 0:
        return None
    takes = [getattr(module, "in_features", None) for path, module in _outside(found) if not _shares(path, stack)]
    if stack.class_width not in takes:
        return None  # what is projected are several states in one
    return chosen + count if chosen < 0 else chosen - 1


def _shares(path: str, stack: Stack) -> bool:
    """Whether a module is a part of a tower."""
    return path.split(".")[0] == stack.path.split(".")[0]
