"""HAWK: what the question's words would look at in the first layer, without an attention map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class Hawk(Pruner):
    """Rank by the first layer's queries of the instruction times its keys, without position (HAWK).

    Of ``q . k / sqrt(d)``, the mean over the instruction's tokens; each head divided by its length over all visual
    tokens; summed over heads. ``ceil(keep_ratio * N)`` are kept.

    Parameters
    ----------
    weights_of_heads : tuple of float, optional
        One per query head; by default all heads count the same (published weights are those of one model).
    """

    layer: int = 0
    weights_of_heads: tuple[float, ...] | None = None

    name: ClassVar[str] = "hawk"
    summary: ClassVar[str] = "what the instruction's queries match in the first layer, without position"
    paper: ClassVar[str] = "HAWK"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(TND)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"affinity"})

    def target(self, size: int) -> int:
        if self.num_keep is not None:
            return min(self.num_keep, size)
        return max(1, math.ceil(round(self.keep_ratio * size, 9)))  # 0.07 * 100 is a little more than 7

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.affinity is not None
        return matched(tokens.affinity, self.weights_of_heads)


def matched(affinity: Tensor, weights: tuple[float, ...] | None = None) -> Tensor:
    """HAWK's score, (N,) float64, from the affinity, (H, T, N)."""
    heads = affinity.detach().double().mean(dim=1)  # (H, N)
    length = heads.norm(dim=1, keepdim=True)
    heads = torch.where(length > 0, heads / torch.where(length > 0, length, 1), 0)
    if weights is None:
        return heads.sum(dim=0)
    if len(weights) != len(heads):
        raise AdaptPruneError(f"weights_of_heads has {len(weights)} numbers, and this model {len(heads)} query heads.")
    return torch.tensor(weights, dtype=torch.float64, device=heads.device) @ heads
