"""VidCom2: of a video, what is unlike its frame and the whole; frames share the budget by how special they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction, positive
from adaptprune.cues import VisualTokens
from adaptprune.methods.quotas import quotas
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest

#: Bandwidths are these powers of two.
POWERS = range(-3, 2)
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(Pruner):
    """Keep what is least like the centre of the video and of its frame (https://arxiv.org/abs/2505.14454).

    Likeness to a centre (a mean) is ``sum_a exp(-d^2 / 2a)`` over a = 1/8, 1/4, ... 2, d the distance in the half of
    the channels that vary least, scaled to length 1. A frame's share of the budget is ``base (1 + p - mean p)``, p the
    softmax over frames of their mean likeness to the video, negated, at temperature 0.01. Frames are the grids that
    share a budget.

    Parameters
    ----------
    channels : float
        Fraction of the channels.
    """

    layer: int = 0
    channels: float = 0.5

    name: ClassVar[str] = "vidcom2"
    summary: ClassVar[str] = "of a video, what is least like its frame and the whole"
    paper: ClassVar[str] = "arXiv 2505.14454"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(ND)"

    def __post_init__(self) -> None:
        positive("channels", self.channels)
        fraction("channels", self.channels)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def score(self, tokens: VisualTokens) -> Tensor:
        whole, frames = self._likeness(tokens)
        return -(whole + frames)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        whole, frames = self._likeness(tokens)
        score = -(whole + frames)
        members = [
            (tokens.coords[:, 0] == frame).nonzero()[:, 0].to(score.device)
            for frame in tokens.coords[:, 0].unique().tolist()
        ]
        special = torch.softmax(-torch.stack([whole[frame].mean() for frame in members]) / TEMPERATURE, dim=0)
        weights = (1 + special - special.mean()).tolist()
        shares = quotas(num_keep, weights, [len(frame) for frame in members])
        kept = [frame[highest(score[frame], share)] for frame, share in zip(members, shares, strict=True)]
        return torch.cat(kept).sort().values

    def _likeness(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Likeness of each token to the centre of all, and to that of its frame, (N,) each."""
        assert tokens.features is not None
        features = tokens.features.detach().double()
        count = max(1, int(self.channels * features.shape[1]))
        quiet = highest(-features.var(dim=0, correction=0), count)
        features = directions(features[:, quiet])
        whole = _likeness(features, features.mean(dim=0))
        frames = torch.empty_like(whole)
        for frame in tokens.coords[:, 0].unique():
            member = (tokens.coords[:, 0] == frame).to(features.device)
            frames[member] = _likeness(features[member], features[member].mean(dim=0))
        return whole, frames


def _likeness(features: Tensor, centre: Tensor) -> Tensor:
    squared = (features - centre).square().sum(dim=1)
    return torch.stack([torch.exp(-squared / (2 * 2.0**power)) for power in POWERS]).sum(dim=0)
