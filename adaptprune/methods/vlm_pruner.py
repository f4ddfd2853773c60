"""VLM-Pruner: unlike tokens join from near to far (arXiv 2512.02700)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import not_negative, positive, whole
from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest

#: The published grid is 24 x 24; distances are measured on one whose larger side is that.
SIDE = 24
DIAGONAL = SIDE * math.sqrt(2)


@dataclass(frozen=True)
class VLMPruner(Pruner):
    """From a few pivots outwards, keep tokens unlike those kept, near ones first (https://arxiv.org/abs/2512.02700).

    1. Pivots: the token whose cached key of layer K-1 has the largest L1 norm, then, again and again, the one whose key
       is farthest (Euclidean) from the nearest pivot's.
    2. Likeness of a token to the kept ones: the highest ``cos * (1 + 0.5 * d / D)`` to any of them; cos of the hidden
       states' `channels` channels of highest variance, d the distance on the grid, D the grid's diagonal; tokens of
       different grids are D apart.
    3. Round by round, the least alike of the tokens whose likeness is below the threshold join, `batch` at most. Where
       fewer than a batch are below it, these join and the threshold rises by `threshold_step`.

    The published third step, which adds dropped tokens to kept ones, is left out.

    Parameters
    ----------
    pivots : int
    channels : int
        All, where there are fewer.
    threshold, threshold_step : float
        In units of cosine similarity.
    batch : int
        Tokens.
    """

    pivots: int = 4
    channels: int = 256
    threshold: float = 0.8
    threshold_step: float = 0.1
    batch: int = 16

    name: ClassVar[str] = "vlm-pruner"
    summary: ClassVar[str] = "tokens unlike those kept, from a few pivots outwards"
    paper: ClassVar[str] = "arXiv 2512.02700"
    cost: ClassVar[str] = "O(ND + NM)"

    def __post_init__(self) -> None:
        for option in ("pivots", "channels", "batch"):
            whole(option, getattr(self, option), 1, 2**31)
        not_negative("threshold", self.threshold)
        positive("threshold_step", self.threshold_step)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rotated_keys"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.rotated_keys is not None
        hidden = tokens.hidden
        wide = hidden.double()
        varied = highest((wide - wide.mean(dim=0)).square().mean(dim=0), self.channels)
        unit, places = directions(hidden[:, varied]), _places(tokens.coords)
        new = farthest(tokens.rotated_keys.double(), min(self.pivots, num_keep))
        kept = torch.zeros(len(tokens), dtype=torch.bool, device=hidden.device)
        alike = torch.full((len(tokens),), -torch.inf, dtype=torch.float64, device=hidden.device)
        threshold, missing = self.threshold, num_keep
        while True:
            kept[new] = True
            missing -= new.numel()
            if not missing:
                return kept.nonzero()[:, 0]
            if new.numel():
                stretched = (unit @ unit[new].T) * (1 + 0.5 * _apart(places, tokens.coords[:, 0], new) / DIAGONAL)
                alike = torch.maximum(alike, stretched.amax(dim=1))
            below = int(((alike < threshold) & ~kept).sum())
            new = highest(-alike.masked_fill(kept, torch.inf), min(below, self.batch, missing))
            if below < self.batch:
                threshold += self.threshold_step


def farthest(points: Tensor, count: int) -> Tensor:
    """Farthest point sampling, (count,) in the order of picking, from the point of largest L1 norm on."""
    picks = [points.abs().sum(dim=1).argmax()]
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype, device=points.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (points - points[picks[-1]]).norm(dim=1))
        nearest[picks[-1]] = -1  # below that of a twin
        picks.append(nearest.argmax())
    return torch.stack(picks)


def _places(coords: Tensor) -> Tensor:
    """Rows and columns, (N, 2), of grids whose larger side is `SIDE`."""
    places = coords[:, 1:].double()
    for grid in torch.unique(coords[:, 0]):
        member = coords[:, 0] == grid
        places[member] *= SIDE / (coords[member, 1:].max() + 1)
    return places


def _apart(places: Tensor, grids: Tensor, some: Tensor) -> Tensor:
    """Distances from every token to some, (N, n)."""
    rows, columns = (axis[:, None] - axis[some] for axis in places.T)
    distance = torch.hypot(rows, columns)
    return distance.masked_fill(grids[:, None] != grids[some][None], DIAGONAL)
