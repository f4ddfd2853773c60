"""Pool: average pooling of the token map, a baseline that keeps every region and no detail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.methods.quotas import apportion
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class Pool(Pruner):
    """Adaptive average pooling of each H x W grid to h x w cells, h * w at most the budget.

    The cells have the proportions of the grid, as far as the budget allows. A cell goes on at the place of the token in
    its middle. Slightly fewer tokens than the budget may be kept.
    """

    name: ClassVar[str] = "pool"
    summary: ClassVar[str] = "averages over h x w regions (baseline)"
    site: ClassVar[str] = "any"
    cost: ClassVar[str] = "O(ND)"

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        spans = list(_grids(tokens.coords.cpu()))
        picked = []
        for (start, rows, columns), share in zip(
            spans, apportion(num_keep, [rows * columns for _, rows, columns in spans]), strict=True
        ):
            if share:
                high, wide = cells(rows, columns, share)
                picked.append(start + (_middles(rows, high)[:, None] * columns + _middles(columns, wide)).flatten())
        return torch.cat(picked).to(tokens.hidden.device)

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        pooled = []
        for start, rows, columns in _grids(tokens.coords.cpu()):
            mine = keep[(keep >= start) & (keep < start + rows * columns)] - start
            if mine.numel():
                shape = (mine // columns).unique().numel(), (mine % columns).unique().numel()
                states = tokens.hidden[start : start + rows * columns].T.reshape(1, -1, rows, columns)
                average = torch.nn.functional.adaptive_avg_pool2d(states, shape)
                pooled.append(average[0].flatten(1).T)
        return torch.cat(pooled)


def _grids(coords: Tensor) -> Iterator[tuple[int, int, int]]:
    """First token, rows and columns of each grid."""
    start = 0
    for size in torch.unique_consecutive(coords[:, 0], return_counts=True)[1].tolist():
        rows, columns = (int(side) + 1 for side in coords[start : start + size, 1:].amax(dim=0))
        if rows * columns != size:
            raise AdaptPruneError(
                f"pool averages whole grids, and only {size} of {rows} x {columns} tokens are left here: "
                "use it where nothing was dropped before."
            )
        yield start, rows, columns
        start += size


def cells(rows: int, columns: int, budget: int) -> tuple[int, int]:
    """(h, w) of the grid's own proportions with h * w within the budget."""
    high = min(rows, budget, max(1, math.isqrt(budget * rows // columns)))
    return high, min(columns, budget // high)


def _middles(side: int, count: int) -> Tensor:
    """The middle place of each of `count` cells of adaptive pooling over `side` places."""
    index = torch.arange(count)
    first, end = index * side // count, ((index + 1) * side + count - 1) // count
    return (first + end - 1) // 2
