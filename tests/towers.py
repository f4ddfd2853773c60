"""What the tests of the tower's cues share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import adaptprune
from adaptprune.cues import VisualTokens
from adaptprune.hooks.seams import towers
from adaptprune.hooks.seams.parts import parts_of
from tests.families import first_layer_of
from tests.spy import SHOWN, Spy


def spying(one: Any, cue: str, **options: Any) -> Any:
    """`prune` with a Spy."""
    SHOWN.clear()
    return adaptprune.prune(one.model, Spy(cue=cue, layer=first_layer_of(one.model), keep_ratio=0.5), **options)


def shown(one: Any, cue: str, inputs: dict[str, Tensor]) -> list[VisualTokens]:
    """What the rule is shown of every picture of a forward."""
    with torch.no_grad(), spying(one, cue):
        one.model(**inputs)
    return list(SHOWN)


def stack_of(one: Any) -> towers.Stack:
    """The tower that reads pictures."""
    return next(stack for stack in towers.stacks(parts_of(one.model)) if "video" not in stack.path)


def same(first: VisualTokens, second: VisualTokens) -> None:
    """All that is known of the tower is equal."""
    assert set(first.tower) == set(second.tower)
    assert first.tower or first.project is not None
    for number, layer in first.tower.items():
        for name in ("attention", "keys", "class_query"):
            torch.testing.assert_close(getattr(layer, name), getattr(second.tower[number], name), atol=1e-5, rtol=1e-4)
    for name in ("projector_input", "class_state"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), atol=1e-5, rtol=1e-4)
