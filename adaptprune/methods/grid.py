"""Grid: evenly spaced rows and columns, the second baseline that every rule has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.methods.quotas import apportion
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class Grid(Pruner):
    """Evenly spaced rows x columns of each grid, trimmed evenly to exactly the budget."""

    name: ClassVar[str] = "grid"
    summary: ClassVar[str] = "evenly spaced rows and columns (baseline)"
    site: ClassVar[str] = "any"
    cost: ClassVar[str] = "O(N)"

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        coords = tokens.coords.cpu()
        sizes = torch.unique_consecutive(coords[:, 0], return_counts=True)[1].tolist()
        start, picked = 0, []
        for size, share in zip(sizes, apportion(num_keep, sizes), strict=True):
            picked.append(start + lattice(coords[start : start + size], share))
            start += size
        return torch.cat(picked).to(tokens.hidden.device)


def lattice(coords: Tensor, count: int) -> Tensor:
    """Indices, ascending, of `count` tokens spread evenly over one full grid.

    Parameters
    ----------
    coords : Tensor, (rows * columns, 3), int64
        In raster order.
    count : int
        0 to rows * columns.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    rows, columns = (int(coords[:, axis].max()) + 1 for axis in (1, 2))
    if coords.shape[0] != rows * columns:  # what is left of a grid: spread over the sequence instead
        return spread(coords.shape[0], count)
    # the smallest lattice of the image's own shape that holds the budget
    high = min(rows, max(1, round(math.sqrt(count * rows / columns))))
    wide = min(columns, math.ceil(count / high))
    high = math.ceil(count / wide)
    lines = spread(rows, high)
    nodes = (lines[:, None] * columns + spread(columns, wide)).flatten()
    return nodes[spread(nodes.numel(), count)]


def spread(size: int, count: int) -> Tensor:
    """`count` of `size` places, evenly spaced and centred, ascending."""
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * size / count).floor().long()
