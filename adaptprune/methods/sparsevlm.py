"""SparseVLM: words that look at the picture rate its tokens; the best of what is dropped is recycled."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from adaptprune.checks import fraction
from adaptprune.cues import ROUNDING, VisualTokens
from adaptprune.methods.schedules import Staged, check_layers
from adaptprune.ops.density_peaks import density_peaks
from adaptprune.pruner import coordinate_tokens, highest, others, ranked

#: Visual tokens of the published counts.
PUBLISHED_SIZE = 576


class _Split(NamedTuple):
    kept: Tensor
    candidates: Tensor
    centres: Tensor
    member: Tensor


@dataclass(frozen=True)
class SparseVLM(Staged):
    """Before three layers, rank by the attention of the words that matter (https://arxiv.org/abs/2410.04417).

    1. Raters, once: of the instruction, the tokens whose share of ``softmax over text of V T^T``, averaged over visual
       tokens, is above the mean of all (all tokens, where none is above); V, T are of before layer 0.
    2. Score: the mean over heads and raters of the attention at layer K-1.
    3. Of the n tokens that a stage drops, the ``int(recycle * n) + 1`` best are clustered (density peaks, a tenth as
       many clusters, and one); every cluster goes on as its mean, in the place of its centre. These places are part of
       what a stage keeps.

    Parameters
    ----------
    keep_ratio : float
        About the mean over all layers: stages keep what was published for 64, 128 and 192 tokens of 576, in proportion
        below and above, and between them what is on the line.
    layers : tuple of three int
        See `adaptprune.methods.schedules.Staged`.
    recycle : float
        Fraction of the dropped tokens that are clustered; 0 recycles nothing.
    """

    positions: str = "packed"
    layers: tuple[int, ...] = (2, 6, 15)
    recycle: float = 0.3

    name: ClassVar[str] = "sparsevlm"
    merges_beside: ClassVar[bool] = True
    summary: ClassVar[str] = "in stages, what the words that matter attend to; clusters of the rest"
    paper: ClassVar[str] = "arXiv 2410.04417"
    cost: ClassVar[str] = "O(HTN + N^2 D)"
    #: Tokens kept at each stage, by budget.
    published: ClassVar[dict[int, tuple[int, int, int]]] = {64: (66, 30, 17), 128: (303, 110, 36), 192: (300, 200, 110)}

    def __post_init__(self) -> None:
        check_layers(self.layers, count=3)
        fraction("recycle", self.recycle)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "rows"})

    def counts(self, size: int, num_layers: int) -> dict[int, int]:
        stages, asked = self.stages(num_layers), self.target(size)
        if asked == size:
            return dict.fromkeys(stages, size)
        kept: dict[int, int] = {}
        for stage, tokens in zip(stages, _between(self.published, Fraction(asked, size)), strict=True):
            kept[stage] = max(1, min(int(tokens * size), *kept.values(), size))
        return kept

    # -- which

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.rows is not None
        return self.rated(tokens.rows.double()[:, self.raters(tokens).to(tokens.rows.device)])

    def rated(self, rows: Tensor) -> Tensor:
        """Scores, (N,), from the raters' attention, (H, R, N)."""
        return rows.mean(dim=(0, 1))

    def raters(self, tokens: VisualTokens) -> Tensor:
        """The instruction tokens whose attention counts, (R,): chosen when first asked for, then remembered."""
        if "raters" not in tokens.memo:
            assert tokens.features is not None
            assert tokens.text is not None
            share = torch.softmax(tokens.features.double() @ tokens.text.double().T, dim=1).mean(dim=0)
            above = (share > share.mean() * (1 + ROUNDING)).nonzero()[:, 0]
            tokens.memo["raters"] = above if above.numel() else torch.arange(len(share), device=share.device)
        found: Tensor = tokens.memo["raters"]
        return found

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        split = self._split(tokens, num_keep)
        return torch.cat([split.kept, split.candidates[split.centres]]).sort().values

    def choose(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        self.raters(tokens)  # by all tokens, whichever of them options set aside
        return super().choose(tokens, num_keep)

    def _split(self, tokens: VisualTokens, num_keep: int) -> _Split:
        """What stays for its score, what is clustered, and how."""
        scores = self.score(tokens)
        dropped = len(tokens) - num_keep
        pool = int(self.recycle * dropped + 1e-9) + 1
        clusters = min(pool // 10 + 1, pool, num_keep - 1) if self.recycle and dropped else 0
        if not clusters:
            none = torch.empty(0, dtype=torch.int64, device=scores.device)
            return _Split(highest(scores, num_keep), none, none, none)
        order = ranked(scores)
        best = num_keep - clusters
        candidates = order[best : best + pool].sort().values
        return _Split(order[:best], candidates, *density_peaks(tokens.hidden[candidates], clusters))

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        states = tokens.hidden[keep]
        free, seen = torch.arange(len(tokens), device=keep.device), tokens
        if self.coordinate_tokens:  # as `choose` did
            always = coordinate_tokens(tokens, self.coordinate_tokens).to(keep.device)
            free = others(always, len(tokens))
            seen = tokens.subset(free)
        split = self._split(seen, len(keep) - (len(tokens) - len(seen)))
        if split.centres.numel():
            among = seen.hidden[split.candidates].double()
            sums = among.new_zeros(split.centres.numel(), among.shape[1]).index_add_(0, split.member, among)
            means = sums / split.member.bincount()[:, None]
            states[torch.searchsorted(keep, free[split.candidates[split.centres]])] = means.to(states.dtype)
        return states


def _between(published: dict[int, tuple[int, int, int]], share: Fraction) -> list[Fraction]:
    """What each stage keeps, as fractions of all tokens, where `share` of them was asked for."""
    budget, known = share * PUBLISHED_SIZE, sorted(published)
    if not known[0] < budget < known[-1]:
        nearest = known[0] if budget <= known[0] else known[-1]
        return [tokens * budget / nearest / PUBLISHED_SIZE for tokens in published[nearest]]
    low, high = next((low, high) for low, high in pairwise(known) if budget <= high)
    part = (budget - low) / (high - low)
    return [(a + (b - a) * part) / PUBLISHED_SIZE for a, b in zip(published[low], published[high], strict=True)]
