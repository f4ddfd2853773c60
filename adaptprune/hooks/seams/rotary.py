"""Rotary embeddings: which modules of a decoder make them, out of which position ids, and how others are made.

A decoder makes them before its layers run and hands each layer one of them, so that what a layer is handed tells which
call of which module it came from. No hooks, no knowledge of what is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adaptprune.hooks.seams.cache import parameters
from adaptprune.hooks.seams.calls import POSITIONS, ROTARY

#: Kinds of rotary embeddings whose frequencies follow the longest position that they were asked for.
GROWING = ("dynamic", "longrope")


def makers(decoder: Any) -> list[nn.Module]:
    """The modules of a decoder that make position embeddings: they take position ids and have learnt nothing."""
    inside = {id(module) for module in decoder.layers.modules()}
    return [
        module
        for module in decoder.modules()
        if id(module) not in inside
        and module is not decoder
        and POSITIONS in parameters(module)
        and next(module.parameters(), None) is None
    ]


def takes(layer: nn.Module) -> bool:
    """Whether a decoder layer is handed position embeddings."""
    return ROTARY in parameters(layer)


def why_not(decoder: Any, layers: Sequence[nn.Module]) -> str | None:
    """Why position embeddings for other positions cannot be made for layers of a decoder; None if they can."""
    if not makers(decoder) or not all(map(takes, layers)):
        return "its layers are handed no rotary embeddings"
    kinds = _ropes(decoder.config)
    if any(name.endswith("_section") for rope in kinds for name in rope):
        return "its positions have several axes (M-RoPE)"
    growing = [rope.get("rope_type") for rope in kinds if rope.get("rope_type") in GROWING]
    return f"the frequencies of its {growing[0]} embeddings follow the longest position" if growing else None


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """What a config says of its rotary embeddings, by kind of layer if there are several."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    inner = [each for each in found.values() if isinstance(each, Mapping)]
    return inner or [found]


@dataclass
class Made:
    """One call of a module that makes position embeddings."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None

    @property
    def positions(self) -> Any:
        """The position ids that it was handed."""
        return self.kwargs[POSITIONS] if POSITIONS in self.kwargs else self.args[self._place]

    @property
    def _place(self) -> int:
        return parameters(self.module).index(POSITIONS)

    def again(self, positions: Tensor) -> Any:
        """The embeddings of other positions, (B, L)."""
        forward = self.module.forward  # past its hooks, which would note it
        if POSITIONS in self.kwargs:
            return forward(*self.args, **{**self.kwargs, POSITIONS: positions})
        args = list(self.args)
        args[self._place] = positions
        return forward(*args, **self.kwargs)


class Noted:
    """The position embeddings that were made in one forward of a decoder. Its methods are hooks."""

    def __init__(self) -> None:
        self._made: list[Made] = []

    def clear(self, *_: Any) -> None:
        """A forward begins."""
        self._made.clear()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module was called."""
        self._made.append(Made(module, args, dict(kwargs)))

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The last call has returned."""
        self._made[-1].output = output

    @property
    def positions(self) -> Any:
        """The position ids of the first call; None before any."""
        return self._made[0].positions if self._made else None

    def of(self, handed: Any) -> Made | None:
        """The call that made what a layer is handed; None if none did."""
        tensors = _tensors(handed)
        for made in self._made:
            known = {id(each) for each in _tensors(made.output)}
            if tensors and all(id(each) in known for each in tensors):
                return made
        return None


def _tensors(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return [part for part in parts if isinstance(part, Tensor)]
