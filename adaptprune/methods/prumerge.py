"""LLaVA-PruMerge: as many tokens as stand out, with what is like them merged in (arXiv 2403.15388)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest, others


@dataclass(frozen=True)
class PruMerge(Pruner):
    """Outliers of the class token's attention, each with its neighbours merged in (https://arxiv.org/abs/2403.15388).

    The last layer's queries and keys count as one head. Tokens whose attention is above ``Q3 + 1.5 IQR`` stay, however
    many these are (the highest one, if none is). To each, the states of the 32 tokens of most similar keys are added,
    weighted by their attention; one more token is the sum of all dropped ones, weighted so, at the place of the dropped
    token of highest attention.

    Parameters
    ----------
    keep_ratio, num_keep
        The most that may be kept: of more outliers, the highest stay.
    neighbours : int
    """

    layer: int = 0
    neighbours: int = 32

    name: ClassVar[str] = "prumerge"
    summary: ClassVar[str] = "as many tokens as stand out to the tower's class token, others merged into them"
    paper: ClassVar[str] = "arXiv 2403.15388"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D)"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("neighbours", self.neighbours, 0, 2**31)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:-1"})

    def score(self, tokens: VisualTokens) -> Tensor:
        tower = tokens.tower[-1]
        if tower.class_query is None:
            raise AdaptPruneError(
                f"{self.name} ranks by the vision tower's class token, and this tower has none: use fastervlm, which "
                "takes the attention that tokens receive."
            )
        keys = tower.keys.detach().double()  # (H, N, d)
        query = tower.class_query.detach().double()
        query = query.movedim(0, 1) if query.ndim == 3 else query[:, None]  # (H, N or 1, d)
        return torch.softmax((query * keys).sum(dim=(0, 2)) * (keys.shape[0] * keys.shape[2]) ** -0.5, dim=0)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        score = self.score(tokens)
        stay = self._stay(score, num_keep)
        return torch.cat([stay, self._extra(score, stay)]).sort().values

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        score, hidden = self.score(tokens), tokens.hidden.double()
        stay = self._stay(score, keep.numel())
        keys = directions(tokens.tower[-1].keys.detach().double().movedim(0, 1).flatten(1))
        alike = keys[stay] @ keys.T
        alike[torch.arange(len(stay), device=alike.device), stay] = -torch.inf
        count = min(self.neighbours, len(tokens) - 1)
        near = torch.sort(alike, dim=1, descending=True, stable=True).indices[:, :count]
        share = torch.zeros_like(alike).scatter_(1, near, score[near])  # gathering (kept, neighbours, D) would be large
        merged = hidden[stay] + share @ hidden
        states = hidden.clone()
        states[stay] = merged
        gone = others(stay, len(tokens))
        states[self._extra(score, stay)] = score[gone] @ hidden[gone]
        return states[keep].to(tokens.hidden.dtype)

    def _stay(self, score: Tensor, num_keep: int) -> Tensor:
        """The outliers, ascending: all that fit beside one more token."""
        outliers = self._outliers(score)
        return outliers if len(outliers) < num_keep else outliers[highest(score[outliers], num_keep - 1)]

    @staticmethod
    def _outliers(score: Tensor) -> Tensor:
        low, high = torch.quantile(score, torch.tensor([0.25, 0.75], dtype=score.dtype, device=score.device))
        found = (score > high + 1.5 * (high - low)).nonzero()[:, 0]
        return found if len(found) else highest(score, 1)

    @staticmethod
    def _extra(score: Tensor, stay: Tensor) -> Tensor:
        """The dropped token of highest attention, (1,)."""
        left = others(stay, len(score))
        return left[highest(score[left], 1)]


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge, and tokens at equal steps over the picture beside the outliers (https://arxiv.org/abs/2403.15388).

    Every ``int(step / 3)``-th token, with ``step = int(1 / ratio)``, the ratio being outliers / N.
    """

    name: ClassVar[str] = "prumerge-plus"
    summary: ClassVar[str] = "as prumerge, and tokens at equal steps"

    def _stay(self, score: Tensor, num_keep: int) -> Tensor:
        outliers, room = self._outliers(score), num_keep - 1
        if len(outliers) >= room:
            return outliers[highest(score[outliers], room)]
        step = max(1, len(score) // len(outliers) // 3)
        spread = torch.arange(0, len(score), step, device=score.device)
        more = spread[~torch.isin(spread, outliers)][: room - len(outliers)]
        return torch.cat([outliers, more]).sort().values
