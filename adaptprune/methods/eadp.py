"""EADP: cover the picture, weighted by the text tokens that point somewhere (ECCV 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction, positive
from adaptprune.cues import VisualTokens, min_max
from adaptprune.ops import facility_location
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest

#: By publication: how sharp a text token's distribution over the picture is, and how sharply entropies count.
SHARPNESS, ENTROPY_SCALE = 100.0, 0.01


@dataclass(frozen=True)
class EADP(Pruner):
    """Facility location, weighted by relevance to the text (https://xuankunyang.github.io/project/EADP/).

    1. ``s_l = -cos(v, t_l)`` of each text token l; its entropy H_l is that of softmax(100 s_l) over the picture. The
       `entropy_share` of the text tokens of lowest entropy count.
    2. Half the sum of ``softmax(-H_l / 0.01) s_l`` over these, and half the s of the mean embedding, stretched to 0..1,
       smoothed on each grid by a 3 x 3 Gaussian over the tokens that are there, to the power of `beta`: w.
    3. Greedily ``argmax_i sum_j w_j max(0, S_ij - best_j)``, S = (1 + cos) / 2 of projected features.

    Parameters
    ----------
    beta : float
        1 for LLaVA, 2 for Qwen, by publication.
    entropy_share : float
        Of the instruction tokens, rounded up, at least one.
    """

    layer: int = 0
    beta: float = 1.0
    entropy_share: float = 0.2

    name: ClassVar[str] = "eadp"
    summary: ClassVar[str] = "coverage of what the sharpest words of the text point at"
    paper: ClassVar[str] = "ECCV 2026"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 (D + M) + TND)"

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        fraction("entropy_share", self.entropy_share)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.features is not None
        assert tokens.text is not None
        visual, text = directions(tokens.features), tokens.text.detach().double()
        alike = -directions(text) @ visual.T  # (T, N)
        log_share = torch.log_softmax(SHARPNESS * alike, dim=1)
        entropy = -(log_share.exp() * log_share).sum(dim=1)
        count = max(1, math.ceil(self.entropy_share * len(text) - 1e-9))
        sharp = highest(-entropy, count)
        local = torch.softmax(-entropy[sharp] / ENTROPY_SCALE, dim=0) @ alike[sharp]
        overall = -visual @ directions(text.mean(dim=0))
        return smoothed(min_max(overall / 2 + local / 2), tokens.coords) ** self.beta

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return facility_location(tokens.features, num_keep, weights=self.score(tokens), shifted=True)

    def warm_up(self) -> None:
        facility_location(torch.eye(2), 2, shifted=True)


def smoothed(scores: Tensor, coords: Tensor) -> Tensor:
    """The Gaussian mean, (1 2 1) x (1 2 1), over each token and those around it, as far as they are there.

    Parameters
    ----------
    scores : Tensor, (N,)
    coords : Tensor, (N, 3), int64
        Grid, row, column.
    """
    places = torch.arange(len(scores), device=scores.device)
    _, grid = torch.unique(coords[:, 0], return_inverse=True)
    low, high = coords[:, 1:].amin(dim=0), coords[:, 1:].amax(dim=0)
    rows, columns = (high - low + 3).tolist()  # a border of one cell all around
    cells = ((grid * rows) + coords[:, 1] - low[0] + 1) * columns + coords[:, 2] - low[1] + 1
    board = torch.full((int(grid.max() + 1) * rows * columns,), -1, device=scores.device)
    board[cells] = places
    total, weight = torch.zeros_like(scores), torch.zeros_like(scores)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            other = board[cells + down * columns + right]
            share = (2 - abs(down)) * (2 - abs(right)) * (other >= 0)
            total = total + share * scores[other.clamp(min=0)]
            weight = weight + share
    return total / weight
