"""FastV: keep what the last prompt token attends to most (arXiv 2403.06764)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class FastV(Pruner):
    """Rank by the mean over heads of the last prompt token's attention at layer K-1 (https://arxiv.org/abs/2403.06764)."""

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "the tokens that the last prompt token attends to most"
    paper: ClassVar[str] = "arXiv 2403.06764"
    cost: ClassVar[str] = "O(HN)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.attention is not None
        return tokens.attention.float().mean(dim=0)
