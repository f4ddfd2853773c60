"""DivPrune: keep tokens that are as unlike one another as can be (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.ops import max_min
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Max-min diversity of the projected features (https://arxiv.org/abs/2503.02175).

    The distance of two tokens is 1 - cos. The first is the token whose nearest neighbour is farthest; then, one by one,
    the token that is farthest from its nearest kept one. No text, no attention.

    Parameters
    ----------
    keep_ratio : float
        ``max(1, round(keep_ratio * N))`` tokens are kept, to the nearest even number half-way, as the published code
        rounds.
    """

    keep_ratio: float = 0.098
    layer: int = 0

    name: ClassVar[str] = "divprune"
    summary: ClassVar[str] = "features that are far from one another: max-min of 1 - cosine"
    paper: ClassVar[str] = "arXiv 2503.02175"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def target(self, size: int) -> int:
        if self.num_keep is not None:
            return super().target(size)
        return max(1, round(self.keep_ratio * size))

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return max_min(tokens.features, num_keep)

    def warm_up(self) -> None:
        max_min(torch.eye(2), 2)
