"""Visual tokens with fewer cues, in another precision, without a class token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
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


@dataclasses.dataclass(frozen=True)
class Strict:
    """A projector that takes its own precision only, as a model's does."""

    project: Callable[[Tensor], Tensor]
    dtype: torch.dtype

    def __call__(self, patches: Tensor) -> Tensor:
        assert patches.dtype == self.dtype, f"the projector computes in {self.dtype}"
        return self.project(patches)


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


@dataclasses.dataclass(frozen=True)
class Watched(VisualTokens):
    """Tokens that note which cues are looked at: names of fields, and "tower:" with a number."""

    looked: set[str] = dataclasses.field(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name in _WATCHED:
            self.looked.add(name)
        return super().__getattribute__(name)


_WATCHED = {field for fields in FIELDS.values() for field in fields}


class WatchedTower(dict[int, TowerLayer]):
    """Layers of a tower that note which of them are looked at."""

    def __init__(self, layers: Mapping[int, TowerLayer], looked: set[str]) -> None:
        super().__init__(layers)
        self.looked = looked

    def __getitem__(self, number: int) -> TowerLayer:
        self.looked.add(f"tower:{number}")
        return super().__getitem__(number)


def watched(tokens: VisualTokens) -> Watched:
    """The same, watched from here on."""
    parts = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    seen = Watched(**parts)
    object.__setattr__(seen, "tower", WatchedTower(tokens.tower, seen.looked))
    return seen


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
    assert tokens.project is not None
    return dataclasses.replace(lower, project=Strict(tokens.project, dtype))
