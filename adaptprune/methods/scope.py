"""SCOPE: cover all tokens by the kept ones, and prefer salient ones (arXiv 2510.24214)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import finite_not_negative
from adaptprune.cues import VisualTokens
from adaptprune.methods.similar import tower_attention
from adaptprune.ops import facility_location
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class Scope(Pruner):
    """Coverage of the projected features times saliency, greedily (https://arxiv.org/abs/2510.24214).

    Each round keeps the highest ``a_i^alpha * sum_j max(0, cos_ij - best_j)`` over the tokens j that are not kept, with
    best_j the highest cosine of j to a kept token, 0 at first, and a the attention of the tower's last layer but one
    (its class token's, else what a token receives), averaged over heads.

    Parameters
    ----------
    alpha : float
        0 is coverage alone.
    """

    layer: int = 0
    alpha: float = 1.0

    name: ClassVar[str] = "scope"
    summary: ClassVar[str] = "coverage of all features by the kept ones, times the tower's attention"
    paper: ClassVar[str] = "arXiv 2510.24214"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 (D + M))"

    def __post_init__(self) -> None:
        finite_not_negative("alpha", self.alpha)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "tower:-2"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return facility_location(tokens.features, num_keep, relevance=tower_attention(tokens), alpha=self.alpha)

    def warm_up(self) -> None:
        facility_location(torch.eye(2), 2)
