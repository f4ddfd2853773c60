"""VisPruner: half by the tower's attention, half by leaving out near duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction
from adaptprune.cues import VisualTokens
from adaptprune.methods.similar import tower_attention
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner

STEP = 8  # tokens that are left out at a time


@dataclass(frozen=True)
class VisPruner(Pruner):
    """Important tokens by the tower's attention, diverse ones of what is left (VisPruner).

    ``floor(important * M)`` tokens are those of highest attention (as FasterVLM's). The others, in the order of their
    attention, are split into those at even places, a, and at odd ones, b; of a, the up to 8 that are most like one of b
    (by the cosine of features) are left out; the list is then what is left of a, from the most to the least alike,
    followed by b; and so on until the budget is met.

    Parameters
    ----------
    important : float
        Fraction of the budget that goes by attention.
    """

    layer: int = 0
    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "half by the tower's attention, half what is left without near duplicates"
    paper: ClassVar[str] = "VisPruner"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D + N^3 / 64)"

    def __post_init__(self) -> None:
        fraction("important", self.important)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tower_attention(tokens)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        order = torch.sort(self.score(tokens), descending=True, stable=True).indices
        count = int(num_keep * self.important)
        features, listed = directions(tokens.features), order[count:]
        cosine = features @ features.T
        while (excess := len(listed) - (num_keep - count)) > 0:
            even, odd = listed[::2], listed[1::2]
            if not len(odd):  # one token left, and none wanted
                listed = even[: len(even) - excess]
                break
            alike = cosine[even][:, odd].amax(dim=1)
            ranked = torch.sort(alike, descending=True, stable=True).indices
            listed = torch.cat([even[ranked[min(STEP, excess) :]], odd])
        return torch.cat([order[:count], listed]).sort().values
