"""SparseVLM's second version: other counts, and only the heads that look at the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.checks import whole
from adaptprune.methods.sparsevlm import SparseVLM
from adaptprune.pruner import highest


@dataclass(frozen=True)
class SparseVLM2(SparseVLM):
    """`SparseVLM` as its second release has it: scores are the mean over the heads with most visual mass, and raters.

    Parameters
    ----------
    heads : int
        How many heads count: those whose attention from raters to visual tokens sums to most.
    """

    heads: int = 14

    name: ClassVar[str] = "sparsevlm-v2"
    summary: ClassVar[str] = "as sparsevlm, by the heads that look at the picture; later counts"
    published: ClassVar[dict[int, tuple[int, int, int]]] = {64: (66, 34, 20), 128: (238, 108, 60), 192: (300, 200, 118)}

    def __post_init__(self) -> None:
        whole("heads", self.heads, 1, 2**31)
        super().__post_init__()

    def rated(self, rows: Tensor) -> Tensor:
        looking = highest(rows.sum(dim=(1, 2)), self.heads)
        return rows[looking].mean(dim=(0, 1))
