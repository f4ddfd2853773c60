"""Visual tokens with every cue filled, and the same with only some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from adaptprune.cues import TowerLayer, VisualTokens

#: The fields of VisualTokens that each cue fills ("tower:-2" fills an entry of `tower`).
FIELDS = {
    "attention": ("attention",),
    "rows": ("rows",),
    "next_attention": ("next_attention",),
    "keys": ("keys",),
    "raw_keys": ("keys",),
    "previous_keys": ("keys",),
    "rotated_keys": ("rotated_keys", "text_rotated_keys"),
    "text_hidden": ("text_hidden",),
    "previous_hidden": ("previous_hidden",),
    "final": ("final", "text_final"),
    "features": ("features", "text"),
    "affinity": ("affinity",),
    "projector": ("projector_input", "project"),
    "class_state": ("class_state",),
    "rotary": ("rotary",),
}
#: What the interface promises in float32 whatever the model computes in.
FLOAT32 = {"attention", "rows", "next_attention", "affinity"}


class Projector(torch.nn.Module):
    """Groups of two patches to one feature; it takes its own precision only, as a model's does."""

    def __init__(self, inside: int, outside: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outside, 2 * inside, generator=generator), requires_grad=False)

    def forward(self, patches: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.linear(patches.flatten(1), self.weight))


def filled(
    rows: int = 4, columns: int = 6, grids: int = 1, *, text: int = 3, heads: int = 4, width: int = 8, seed: int = 0
) -> VisualTokens:
    """Random tokens of full grids in raster order, every cue filled: a class token, and two layers of a tower."""
    made = torch.Generator().manual_seed(seed)
    coords = torch.cartesian_prod(torch.arange(grids), torch.arange(rows), torch.arange(columns))
    count = len(coords)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    def attention(*shape: int) -> Tensor:
        return torch.softmax(2 * normal(*shape, count), dim=-1) * 0.7

    rows_of_text = attention(heads, text)
    tower = {number: TowerLayer(attention(heads), normal(heads, count, 3), normal(heads, 3)) for number in (-1, -2, 0)}
    return VisualTokens(
        hidden=normal(count, width),
        coords=coords,
        attention=rows_of_text[:, -1],
        keys=normal(count, 2),  # two dimensions: many near-parallel keys
        layer=2,
        num_layers=32,
        rows=rows_of_text,
        next_attention=attention(heads),
        rotated_keys=normal(count, width),
        text_rotated_keys=normal(text, width),
        text_hidden=normal(text, width),
        previous_hidden=normal(count, width),
        final=normal(count, width),
        text_final=normal(text, width),
        features=normal(count, width),
        text=normal(text, width),
        affinity=normal(heads, text, count),
        tower=tower,
        projector_input=normal(count, 2, 5),
        project=Projector(5, width, made),
        class_state=normal(width),
        rotary=(normal(count, 4).clamp(-1, 1), normal(count, 4).clamp(-1, 1)),
    )


def without_class(tokens: VisualTokens) -> VisualTokens:
    """The same from a tower that has no class token."""
    tower = {number: dataclasses.replace(layer, class_query=None) for number, layer in tokens.tower.items()}
    return dataclasses.replace(tokens, tower=tower, class_state=None)


def only(tokens: VisualTokens, cues: Iterable[str]) -> VisualTokens:
    """The same with nothing but some cues."""
    known: dict[str, Any] = {}
    tower = {}
    for cue in cues:
        if cue.startswith("tower:"):
            number = int(cue.removeprefix("tower:"))
            tower[number] = tokens.tower[number]
        else:
            known |= {field: getattr(tokens, field) for field in FIELDS[cue]}
    return VisualTokens(
        tokens.hidden,
        tokens.coords,
        layer=tokens.layer,
        num_layers=tokens.num_layers,
        size=tokens.size,
        tower=tower,
        memo=tokens.memo,
        **known,
    )


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of some tokens, by name."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, (VisualTokens, TowerLayer)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name != "memo"}
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple):
        parts = enumerate(value)
    else:
        return {}
    return {key: found for part, inner in parts for key, found in tensors(inner, f"{name}.{part}").items()}


def mapped(tokens: VisualTokens, change: Any) -> VisualTokens:
    """The same with ``change(name, tensor)`` for every tensor of floating point."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return change(name, value) if value.is_floating_point() else value
        if isinstance(value, TowerLayer):
            parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return TowerLayer(**{part: walk(inner, part) for part, inner in parts.items()})
        if isinstance(value, dict):
            return {part: walk(inner, name) for part, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(walk(inner, name) for inner in value)
        return value

    changed = {
        field.name: walk(getattr(tokens, field.name), field.name)
        for field in dataclasses.fields(tokens)
        if field.name != "memo"
    }
    return VisualTokens(**changed)


def in_precision(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """As a model of that precision hands them over: what the interface promises in float32 stays so."""
    lower = mapped(tokens, lambda name, value: value if name in FLOAT32 else value.to(dtype))
    made = torch.Generator().manual_seed(0)
    assert tokens.projector_input is not None
    inside, outside = tokens.projector_input.shape[-1], tokens.hidden.shape[-1]
    return dataclasses.replace(lower, project=Projector(inside, outside, made).to(dtype))
