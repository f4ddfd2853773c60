"""VisPruner: half by the tower's attention, half by leaving out near duplicates (arXiv 2412.01818v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction
from adaptprune.cues import VisualTokens
from adaptprune.methods.similar import tower_attention
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, ranked

STEP = 8  # tokens that are left out at a time
NEAR = 64  # neighbours of each token that are looked through before all are


@dataclass(frozen=True)
class VisPruner(Pruner):
    """Important tokens by the tower's attention, diverse ones of what is left (https://arxiv.org/abs/2412.01818v2).

    ``floor(important * M)`` tokens are those of highest attention (as FasterVLM's). The others, in the order of their
    attention, are split into those at even places, a, and at odd ones, b; of a, the up to 8 that are most like one of b
    (by the cosine of features) are left out; the list is then what is left of a, from the most to the least alike,
    followed by b; and so on until the budget is met.

    Parameters
    ----------
    important : float
        Fraction of the budget that goes by attention.
    """

    layer: int = 0
    important: float = 0.5

    name: ClassVar[str] = "vispruner"
    summary: ClassVar[str] = "half by the tower's attention, half what is left without near duplicates"
    paper: ClassVar[str] = "arXiv 2412.01818v2"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D + N^3 / 64)"

    def __post_init__(self) -> None:
        fraction("important", self.important)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tower_attention(tokens)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        order = ranked(self.score(tokens))
        count = int(num_keep * self.important)
        features, listed = directions(tokens.features), order[count:]
        cosine = features @ features.T
        near = cosine.topk(min(NEAR, len(tokens)), dim=1).indices
        while (excess := len(listed) - (num_keep - count)) > 0:
            even, odd = listed[::2], listed[1::2]
            if not len(odd):  # one token left, and none wanted
                listed = even[: len(even) - excess]
                break
            alike = _likest(cosine, near, even, odd)
            listed = torch.cat([even[ranked(alike)[min(STEP, excess) :]], odd])
        return torch.cat([order[:count], listed]).sort().values


def _likest(cosine: Tensor, near: Tensor, even: Tensor, odd: Tensor) -> Tensor:
    """The highest cosine of each even token to an odd one: mostly that of the first neighbour that is odd."""
    is_odd = torch.zeros(len(cosine), dtype=torch.bool, device=cosine.device)
    is_odd[odd] = True
    among = is_odd[near[even]]  # (E, NEAR)
    first = near[even].gather(1, among.int().argmax(dim=1, keepdim=True))
    alike = cosine[even, first[:, 0]]
    none = ~among.any(dim=1)
    alike[none] = cosine[even[none]][:, odd].amax(dim=1)
    return alike
