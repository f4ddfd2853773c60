"""Nuwa's region quota: something of every region, then the best of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.cues import VisualTokens
from adaptprune.methods.similar import tower_attention
from adaptprune.pruner import Pruner, highest, others, ranked


@dataclass(frozen=True)
class Nuwa(Pruner):
    """The top of every region by the tower's attention, then the top of what is left (the region quota of Nuwa).

    What is said of places (grounding) survives, since no region is without a token. If the regions' tokens are more
    than the budget, the best of those are kept.

    Parameters
    ----------
    region : int
        Side of a region, in cells.
    per_region : int
        Tokens of each.
    """

    layer: int = 0
    region: int = 2
    per_region: int = 1

    name: ClassVar[str] = "nuwa"
    summary: ClassVar[str] = "the top of every 2 x 2 region by the tower's attention, then the top of all"
    paper: ClassVar[str] = "Nuwa"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(HN + N log N)"

    def __post_init__(self) -> None:
        whole("region", self.region, 1, 2**20)
        whole("per_region", self.per_region, 1, 2**20)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tower_attention(tokens)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        score = self.score(tokens)
        places = torch.cat([tokens.coords[:, :1], tokens.coords[:, 1:] // self.region], dim=1).to(score.device)
        _, regions = torch.unique(places, dim=0, return_inverse=True)
        order = ranked(score)
        grouped = order[torch.sort(regions[order], stable=True).indices]  # region by region, the best first
        counts = torch.bincount(regions)
        starts = (counts.cumsum(0) - counts)[regions[grouped]]
        first = grouped[torch.arange(len(grouped), device=score.device) - starts < self.per_region]
        if len(first) >= num_keep:
            first = first.sort().values
            return first[highest(score[first], num_keep)]
        rest = others(first, len(tokens))
        return torch.cat([first, rest[highest(score[rest], num_keep - len(first))]]).sort().values
