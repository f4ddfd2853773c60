"""OTPrune: the kept tokens' distribution stays close to all tokens' (arXiv 2602.20205)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.ops import dpp
from adaptprune.pruner import Pruner

#: What the published code multiplies the squared Gram matrix with.
SCALE = 0.01


@dataclass(frozen=True)
class OTPrune(Pruner):
    """Greedy log-determinant of ``I + 0.01 G G^T`` (https://arxiv.org/abs/2602.20205): no text, no attention.

    G = X X^T, and X are the projected features with each channel divided by its norm over the tokens.
    """

    layer: int = 0

    name: ClassVar[str] = "otprune"
    summary: ClassVar[str] = (
        "features whose distribution stands for all: greedy log-determinant of the squared Gram matrix"
    )
    paper: ClassVar[str] = "arXiv 2602.20205"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(ND min(N, D) + MND)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return dpp(num_keep, factors=SCALE**0.5 * squared_gram_factors(tokens.features), ridge=1.0)

    def warm_up(self) -> None:
        dpp(2, factors=torch.eye(2, dtype=torch.float64), ridge=1.0)


def squared_gram_factors(features: Tensor) -> Tensor:
    """B of (N, min(N, D)) in float64 with ``B B^T = G G^T``."""
    wide = features.detach().double()
    norm = wide.norm(dim=0)
    channels = torch.where(norm > 0, wide / torch.where(norm > 0, norm, 1), 0)
    if channels.shape[0] <= channels.shape[1]:
        return channels @ channels.T
    # with X = Q R, G G^T = X (R^T R) X^T
    return channels @ torch.linalg.qr(channels, mode="r").R.T
