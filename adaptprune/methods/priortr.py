"""PriorTR: what the question adds to what a prompt looks at anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.checks import one_of
from adaptprune.cues import VisualTokens
from adaptprune.pruner import Pruner

EPSILON = 1e-10


@dataclass(frozen=True)
class PriorTR(Pruner):
    """Rank by ``P * log(P / Q)``: attention after the question has been read, against that before it.

    Q is the attention of the first token after the visual ones at layer K-1, which has read nothing of the question
    yet; P that of the instruction. Both are means over heads and sum to 1 over the visual tokens; 1e-10 is added to
    each inside the logarithm. The release computes in float32, this in float64. An instruction of a single token has no
    P apart from Q: all scores are 0, and the first tokens stay.

    Parameters
    ----------
    prior : {"mean", "last"}
        What is set against the prior Q: the mean of all rows of the instruction, as published for LLaVA-1.5, or its
        last row, as for LLaVA-NeXT.
    """

    layer: int = 3
    prior: str = "mean"

    name: ClassVar[str] = "priortr"
    summary: ClassVar[str] = "what the question attends to more than the prompt did before it"
    paper: ClassVar[str] = "PriorTR"
    cost: ClassVar[str] = "O(HTN)"

    def __post_init__(self) -> None:
        one_of("prior", self.prior, ("mean", "last"))
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rows"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.rows is not None
        rows = tokens.rows.double().mean(dim=0)  # (T, N)
        before = _shares(rows[0])
        after = _shares(rows.mean(dim=0) if self.prior == "mean" else rows[-1])
        return after * ((after + EPSILON) / (before + EPSILON)).log()


def _shares(row: Tensor) -> Tensor:
    """Attention that sums to 1 over visual tokens; 0 where there is none at all."""
    return row / (row.sum() + EPSILON)
