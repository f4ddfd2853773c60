"""HiRED: the full view says how the budget is split over the tiles (arXiv 2408.10945)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction, one_of
from adaptprune.cues import VisualTokens
from adaptprune.methods.quotas import quotas
from adaptprune.methods.similar import tower_attention
from adaptprune.pruner import Pruner, budget, highest

STRIPES = {
    "quadrants": "each tile is credited with the part of the full view that it shows",
    "reference": "with a horizontal stripe of it, as the released code does",
}


@dataclass(frozen=True)
class HiRED(Pruner):
    """Half of the budget for the full view, the rest for tiles by what it marks in them (https://arxiv.org/abs/2408.10945).

    The full view is the first grid. Marks are its tokens of highest attention at the tower's first layer; tiles share
    what is left in proportion to the marks in the part of the view that they show (by their sizes, if there is none).
    Within the view and each tile, the highest attention at the last layer but one stays (means over heads). Tiles that
    come as one large grid are its four quarters; others lie in rows and columns as nearly square as can be.

    Parameters
    ----------
    stripes : {"quadrants", "reference"}
    marks : float
        Fraction of the full view's tokens that are marks.
    """

    layer: int = 0
    stripes: str = "quadrants"
    marks: float = 0.2

    name: ClassVar[str] = "hired"
    summary: ClassVar[str] = "half of the budget for the full view, which splits the rest over the tiles"
    paper: ClassVar[str] = "arXiv 2408.10945"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(HN)"

    def __post_init__(self) -> None:
        one_of("stripes", self.stripes, STRIPES)
        fraction("marks", self.marks)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:0", "tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tower_attention(tokens)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        score, coords = self.score(tokens), tokens.coords.cpu()
        numbers = coords[:, 0].unique().tolist()
        view = (coords[:, 0] == numbers[0]).nonzero()[:, 0]
        tiles = _tiles(coords, numbers)
        count = num_keep if not tiles else min(num_keep // 2, len(view))
        room = sum(map(len, tiles))
        count = max(count, num_keep - room)  # tiles may be too few for the rest
        first = tokens.tower[0].attention.detach().double().mean(dim=0).cpu()[view]
        marked = coords[view[highest(first, budget(self.marks, len(view)))]] if self.marks else coords[:0]
        shares = quotas(num_keep - count, self._marks(marked, coords[view], len(tiles)), list(map(len, tiles)))
        parts = zip([view, *tiles], [count, *shares], strict=True)
        kept = [part[highest(score[part.to(score.device)].cpu(), share)] for part, share in parts]
        return torch.cat(kept).sort().values.to(score.device)

    def _marks(self, marked: Tensor, view: Tensor, tiles: int) -> list[float]:
        """How many marks lie in the part of the full view that each tile is credited with."""
        if not tiles:
            return []
        rows, columns = (int(side) + 1 for side in view[:, 1:].amax(dim=0))
        high, wide = (tiles, 1) if self.stripes == "reference" else _arranged(tiles)
        row, column = _band(marked[:, 1], rows, high), _band(marked[:, 2], columns, wide)
        return [float(each) for each in torch.bincount(row * wide + column, minlength=tiles).tolist()]


def _band(places: Tensor, side: int, parts: int) -> Tensor:
    """Which of `parts` equal bands of a side the centres of cells lie in; on a border, the later one."""
    return (2 * places + 1) * parts // (2 * side)


def _arranged(tiles: int) -> tuple[int, int]:
    """Rows and columns, as nearly square as the number allows."""
    rows = next(side for side in range(math.isqrt(tiles), 0, -1) if tiles % side == 0)
    return rows, tiles // rows


def _tiles(coords: Tensor, numbers: list[int]) -> list[Tensor]:
    """The tokens of each tile; of one large grid, those of each quarter, which may be none."""
    if len(numbers) != 2:
        return [(coords[:, 0] == number).nonzero()[:, 0] for number in numbers[1:]]
    large = (coords[:, 0] == numbers[1]).nonzero()[:, 0]
    rows, columns = (int(side) + 1 for side in coords[large, 1:].amax(dim=0))
    half = _band(coords[large, 1], rows, 2) * 2 + _band(coords[large, 2], columns, 2)
    return [large[half == quarter] for quarter in range(4)]
