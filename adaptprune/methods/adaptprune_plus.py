"""AdaptPrune-plus: cover what the question looks at, so that breadth follows the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import one_of, positive
from adaptprune.cues import VisualTokens
from adaptprune.ops import BACKENDS, facility_location
from adaptprune.pruner import Pruner

ASKED = {
    "both": "the last prompt token and the mean of the instruction's, each counting half",
    "last": "the last prompt token alone, as the published rule has it",
    "mean": "the mean of the instruction's tokens",
}


@dataclass(frozen=True)
class AdaptPrunePlus(Pruner):
    """AdaptPrune's attention and key similarity, as coverage in place of suppression (this project's own rule).

    Round by round, the token that adds most to ``sum_j a_j max_s S_js`` is kept: a is how much attention a token gets
    at layer K-1, S the published similarity kernel ``exp(-(1 - cos)^2 / 2 similarity_sigma^2)`` of keys, and s the kept
    tokens. A token that much attention goes to is worth keeping, or being stood for by one like it; once it is covered,
    the next best thing follows. So the picture itself says how far the budget spreads: one thing on plain ground is
    kept whole, and of a crowd something of each. Neither distance in the picture nor a preference for its centre: on
    the validation pictures both cost answers (docs/accuracy.md).

    Parameters
    ----------
    similarity_sigma : float
        In units of cosine similarity between the keys of layer K-1, which exist already.
    asked : {"both", "last", "mean"}
        Whose attention counts.
    backend : str
        See `adaptprune.ops.facility_location`.
    """

    layer: int = 3
    similarity_sigma: float = 0.3
    asked: str = "both"
    backend: str = "auto"

    name: ClassVar[str] = "adaptprune-plus"
    summary: ClassVar[str] = "what covers best, by likeness of keys, what the question attends to"
    paper: ClassVar[str] = "this project, after arXiv 2503.08019"
    cost: ClassVar[str] = "O(HTN + N^2 (D + M))"

    def __post_init__(self) -> None:
        one_of("asked", self.asked, ASKED)
        one_of("backend", self.backend, ("auto", *BACKENDS))
        positive("similarity_sigma", self.similarity_sigma)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rows", "previous_keys"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.rows is not None
        rows = tokens.rows.detach().double().mean(dim=0)  # (T, N)
        last, mean = (_shares(each) for each in (rows[-1], rows.mean(dim=0)))
        return {"last": last, "mean": mean, "both": last + mean}[self.asked]

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.keys is not None
        weights, width = self.score(tokens), self.similarity_sigma
        return facility_location(tokens.keys, num_keep, weights=weights, width=width, backend=self.backend)

    def warm_up(self) -> None:
        facility_location(torch.eye(2), 2, width=self.similarity_sigma, backend=self.backend)


def _shares(attention: Tensor) -> Tensor:
    total = attention.sum()
    return attention / total if total > 0 else attention
