"""PyramidDrop: a part of what is left leaves at every stage (arXiv 2410.17247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.methods.schedules import Dwindling


@dataclass(frozen=True)
class PyramidDrop(Dwindling):
    """Before several layers, rank by what the layer itself will attend to (https://arxiv.org/abs/2410.17247).

    The score is the mean over heads of the last prompt token's attention as layer K would have it: with its own norm,
    queries, keys and rotary embedding, of the states before it.

    Parameters
    ----------
    keep_ratio : float
        The mean over all layers. Each stage keeps the same part q of what it finds; of N tokens at first,
        ``floor(N * q)``, ``floor(N * q^2)``... The default is q = 1/2 at the published layers: 50, 25 and 12.5 %.
    layers : tuple of int
        See `adaptprune.methods.schedules.Staged`.
    """

    keep_ratio: float = 0.46875
    layers: tuple[int, ...] = (8, 16, 24)

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "in stages, what the last prompt token is about to attend to most"
    paper: ClassVar[str] = "arXiv 2410.17247"
    cost: ClassVar[str] = "O(HN)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"next_attention"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.next_attention is not None
        return tokens.next_attention.double().mean(dim=0)
