"""ZOO-Prune: tokens that the projector is sensitive to, and that differ (arXiv 2509.24837)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import positive, whole
from adaptprune.cues import VisualTokens, min_max
from adaptprune.ops import max_min
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class ZOOPrune(Pruner):
    """Zeroth-order sensitivity of the projector, times distance to the kept tokens (https://arxiv.org/abs/2509.24837).

    ``S_i`` is the mean over random directions u of ``|P(x_i + h u) - P(x_i - h u)| / 2h``, with P the projector and x_i
    what it was handed; S is stretched to 0..1. The highest S is kept first, then the highest ``S_i (1 - max cos)`` to
    the kept tokens, of projected features.

    Parameters
    ----------
    directions : int
        How many: each costs two runs of the projector over all tokens. All tokens share them.
    step : float
        h, in the units of the projector's input; directions have length 1.
    seed : int
        Of the directions.
    """

    layer: int = 0
    directions: int = 64
    step: float = 0.01
    seed: int = 0

    name: ClassVar[str] = "zooprune"
    summary: ClassVar[str] = "tokens that the projector is sensitive to, times their distance to those kept"
    paper: ClassVar[str] = "arXiv 2509.24837"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(128 projections + MND)"

    def __post_init__(self) -> None:
        whole("directions", self.directions, 1, 2**20)
        positive("step", self.step)
        whole("seed", self.seed, 0, 2**32 - 1)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "projector"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return max_min(tokens.features, num_keep, quality=min_max(self.sensitivity(tokens)), seed="quality")

    @torch.no_grad()
    def sensitivity(self, tokens: VisualTokens) -> Tensor:
        """S before it is stretched, (N,) float64, in units of the projector's output over those of its input."""
        assert tokens.projector_input is not None
        assert tokens.project is not None
        given = tokens.projector_input
        base, total = given.double(), torch.zeros(len(given), dtype=torch.float64, device=given.device)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.directions, *given.shape[1:], generator=generator).double()
        for direction in drawn / drawn.flatten(1).norm(dim=1)[:, None, None]:
            moved = self.step * direction.to(given.device)
            up, down = (tokens.project((base + side * moved).to(given.dtype)).double() for side in (1, -1))
            total += (up - down).flatten(1).norm(dim=1)
        return total / (2 * self.step * self.directions)

    def warm_up(self) -> None:
        max_min(torch.eye(2), 2, seed="quality")
