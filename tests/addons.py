"""Oracles of the options that every rule has: the stock model, made to see a shorter prompt or a bias on its keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adaptprune import FastV
from adaptprune.pruner import budget
from adaptprune.testing.oracle import _one_stream, attends, cache_in, decoder_layers
from adaptprune.testing.zoo import SPECIMENS
from tests.tiny import llava

#: Positions of several axes: a place that is left free in one of them is not free in another.
SEVERAL_AXES = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7",
    "paddleocr_vl", "cosmos3_edge", "ernie4_5_vl_moe", "glm46v", "glm4v_moe", "glm4v", "glm_ocr", "hunyuan_vl",
    "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker",
)  # fmt: skip
#: Layers that see a window or a chunk of places.
WINDOWS = (
    "gemma3", "gemma3n", "gemma4", "gemma4_unified", "exaone4_5", "cohere_compass", "cohere2_vision", "aya_vision",
    "idefics2", "lfm3_vl", "llama4", "step3p7",
)  # fmt: skip
#: No position embeddings at all.
NO_ROTARY = ("nemotron_h_omni",)
#: What is said of those that cannot be packed.
UNPACKABLE = {
    **dict.fromkeys(SEVERAL_AXES, "several axes"),
    **dict.fromkeys(WINDOWS, "window or chunk of"),
    **dict.fromkeys(NO_ROTARY, "no rotary embeddings"),
}
PACKABLE = [name for name in SPECIMENS if name not in UNPACKABLE]


def decoder_of(one: Any) -> Any:
    """The module that runs the layers."""
    layers = decoder_layers(one.model)
    return next(each for each in one.model.modules() if list(getattr(each, "layers", None) or []) == layers)


@contextmanager
def shorter(one: Any, stays: list[int]) -> Iterator[None]:
    """The decoder reads only some places of its one prompt, as if nothing had ever been there besides."""
    total = len(stays)

    def cut(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal total
        assert not args
        states = kwargs["inputs_embeds"]
        if states.shape[1] == 1:
            total += 1
            places = torch.tensor([[total - 1]])
            return args, {**kwargs, "attention_mask": None, "position_ids": places}
        mask = kwargs.get("attention_mask")
        whole = isinstance(mask, Tensor) and mask.ndim == 4
        mask = mask[:, :, stays][..., stays] if whole else None
        changed = {"inputs_embeds": states[:, stays], "attention_mask": mask, "position_ids": torch.arange(total)[None]}
        return args, {**kwargs, **changed}

    handle = decoder_of(one).register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_layers(one: Any, first: int, rewrite: Callable[..., dict[str, Any]]) -> Iterator[None]:
    """Rewrite the arguments of layers from `first` on; `rewrite` is told the places before and behind the forward."""
    past = total = 0

    def before(number: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal past, total
        states = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            cache = cache_in(kwargs)
            past = cache.get_seq_length() if cache is not None else 0
            total = past + _one_stream(one.model, states).shape[1]
        return None if number < first else (args, {**kwargs, **rewrite(number, states, kwargs, past, total)})

    layers = decoder_layers(one.model)
    handles = [
        layer.register_forward_pre_hook(partial(before, number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def renumbered(one: Any, stages: dict[int, list[list[int]]]) -> Any:
    """Position embeddings are those of places without gaps; nothing else is changed.

    `stages` says from which layer on which places are not there, by row.
    """
    makers = [each for name, each in decoder_of(one).named_children() if name.startswith("rotary")]

    def rewrite(number: int, states: Tensor, kwargs: dict[str, Any], past: int, total: int) -> dict[str, Any]:
        places, given = kwargs["position_ids"], kwargs["position_embeddings"]
        maker = next(each for each in makers if torch.equal(each(states, places)[0], given[0]))
        gone = stages[max(each for each in stages if each <= number)]
        copies = states.shape[0] // len(gone)  # beams
        free = [
            [sum(each < place for each in gone[row // copies]) for place in range(past, total)]
            for row in range(states.shape[0])
        ]
        packed = places - torch.tensor(free)
        return {"position_ids": packed, "position_embeddings": maker(states, packed)}

    return on_layers(one, min(stages), rewrite)


def biased(one: Any, first: int, biases: list[dict[int, float]]) -> Any:
    """Numbers are added in the masks of layers from `first` on, by row and place. Within `hiding`, which makes them."""

    layers = decoder_layers(one.model)

    def rewrite(number: int, states: Tensor, kwargs: dict[str, Any], past: int, total: int) -> dict[str, Any]:
        if not attends(layers[number]):
            return {}
        mask = kwargs["attention_mask"]
        lowest = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape).masked_fill(~mask, lowest) if mask.dtype == torch.bool else mask.clone()
        start, copies = total - mask.shape[-1], mask.shape[0] // len(biases)
        for row in range(mask.shape[0]):
            for place, value in biases[row // copies].items():
                if start <= place < total:
                    mask[row, :, :, place - start] += value
        return {"attention_mask": mask}

    return on_layers(one, first, rewrite)


def even(report: Any, factor: float = 1.0) -> list[dict[int, float]]:
    """By row and place, the bias of kept tokens that all stand for as many: those of one image have one budget."""
    found = []
    for sample in report.samples:
        shares = [math.log(size / kept) for size, kept in sample.images for _ in range(kept)]
        found.append({place: factor * share for place, share in zip(sample.kept, shares, strict=True)})
    return found


@dataclass(frozen=True)
class TwoStages(FastV):
    """Half before layer 1, a sixth of the original before layer 3."""

    layer: int = 1

    def stages(self, num_layers):
        return (1, 3)

    def counts(self, size, num_layers):
        return {1: budget(0.5, size), 3: budget(1 / 6, size)}


class FirstStage(TwoStages):
    def stages(self, num_layers):
        return (1,)


def tiny(attention="sdpa"):
    return SimpleNamespace(model=llava(attention))
