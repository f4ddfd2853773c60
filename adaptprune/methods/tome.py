"""ToMe-style merging before the decoder: like tokens are averaged until the budget is met (after arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, ranked


@dataclass(frozen=True)
class ToMe(Pruner):
    """Bipartite soft matching, repeated, on projected features (after https://arxiv.org/abs/2210.09461).

    The tokens are split into those at even places, a, and at odd ones, b; each of a is tied to the one of b that its
    feature is most like (cosine), and the strongest ties are merged: means, weighted by how many tokens each stands
    for. At most half of the tokens leave at a time. A merged token goes on at the place of the one of b.
    """

    layer: int = 0

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "averages of like tokens, two by two"
    paper: ClassVar[str] = "after arXiv 2210.09461"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        return self._owners(tokens, num_keep).unique()

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        owners, hidden = self._owners(tokens, keep.numel()), tokens.hidden.double()
        sums = torch.zeros_like(hidden).index_add_(0, owners, hidden)
        return (sums[keep] / torch.bincount(owners, minlength=len(tokens))[keep, None]).to(tokens.hidden.dtype)

    def weights(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        return torch.bincount(self._owners(tokens, keep.numel()), minlength=len(tokens))[keep].double()

    def _owners(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        """Of each token, the one that it is merged into, itself if it stays: (N,)."""
        assert tokens.features is not None
        sums = tokens.features.detach().double()  # a mean and a sum have the same direction
        owners = torch.arange(len(sums), device=sums.device)
        alive = owners
        while len(alive) > num_keep:
            even, odd = alive[::2], alive[1::2]
            unit = directions(sums)
            alike, partner = (unit[even] @ unit[odd].T).max(dim=1)
            count = min(len(alive) - num_keep, len(even))
            strongest = ranked(alike)[:count]
            gone, into = even[strongest], odd[partner[strongest]]
            sums = sums.index_add(0, into, sums[gone])
            moved = torch.arange(len(sums), device=sums.device)
            moved[gone] = into
            owners = moved[owners]
            alive = alive[~torch.isin(alive, gone)]
        return owners
