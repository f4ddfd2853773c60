"""What the layers of a cache of one sequence hold, for who takes it over: a running batch copies it into its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptprune.hooks.marks import bias_of
from adaptprune.hooks.seams.cache import filled, held, layers_of, seen
from adaptprune.hooks.state import BELOW, STATE, PruneState, View


def positions_held(cache: Any, index: int) -> Tensor:
    """The positions in its sequence of the keys that a layer of a cache holds, (S,); the cache has one row."""
    layer = layers_of(cache)[index]
    count, total, device = held(layer), seen(cache), filled(layer)[0].device
    state: PruneState | None = getattr(cache, STATE, None)
    if state is None:
        return torch.arange(total, device=device)[-count:]
    return state.columns(_stage(state, index), total, 1, device)[0, -count:].to(device)


def bias_held(cache: Any, index: int) -> Tensor | None:
    """What is added to what attention makes of those keys, (S,); None: nothing."""
    view = _view(cache, index)
    if view is None or view.bias is None:
        return None
    layer = layers_of(cache)[index]
    return bias_of(view, seen(cache))[0, -held(layer) :].to(filled(layer)[0].device)


def shifts_held(cache: Any, layers: int) -> tuple[int, ...]:
    """By how many places packed positions move the next token forward, at each of so many layers."""
    views = (_view(cache, index) for index in range(layers))
    return tuple(0 if view is None or view.shift is None else int(view.shift[0, 0]) for view in views)


def _view(cache: Any, index: int) -> View | None:
    state: PruneState | None = getattr(cache, STATE, None)
    return None if state is None else state.views.get(_stage(state, index))


def _stage(state: PruneState, index: int) -> int:
    return max((stage for stage in state.stages if stage <= index), default=BELOW)
