"""HoloV: the budget is split over runs of the picture, so that no part goes without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.cues import VisualTokens
from adaptprune.methods.quotas import quotas
from adaptprune.methods.similar import tower_attention
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest


@dataclass(frozen=True)
class HoloV(Pruner):
    """Quotas for contiguous runs of the raster order, then the tower's attention within each (HoloV).

    A token counts ``1000 a + 0.09 var``, with a its attention and var the variance of its cosines to all features (its
    own set to 0); in each run these are scaled so that their mean is that of the run's attention. Runs share the budget
    by their mean score (largest remainders); within a run the highest attention stays.

    Parameters
    ----------
    crops : int
        How many runs; 0 is ``int(1.78 N / M)``, as it is done for Qwen's models.
    """

    layer: int = 0
    crops: int = 16

    name: ClassVar[str] = "holov"
    summary: ClassVar[str] = "quotas for 16 runs of the picture, the tower's attention within each"
    paper: ClassVar[str] = "HoloV"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(N^2 D)"

    def __post_init__(self) -> None:
        whole("crops", self.crops, 0, 2**31)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.features is not None
        features = directions(tokens.features)
        cosine = (features @ features.T).fill_diagonal_(0)
        return 1e3 * tower_attention(tokens) + 0.09 * cosine.var(dim=1, correction=0)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        attention, score, size = tower_attention(tokens), self.score(tokens), len(tokens)
        crops = self.crops or int(1.78 * size / num_keep)
        runs = torch.arange(size).tensor_split(max(1, min(crops, size)))
        shares = quotas(num_keep, [_weight(score[run], attention[run]) for run in runs], [len(run) for run in runs])
        kept = [run[highest(attention[run], share).cpu()] for run, share in zip(runs, shares, strict=True)]
        return torch.cat(kept).to(attention.device)


def _weight(score: Tensor, attention: Tensor) -> float:
    """The mean score of a run, scaled to its attention's mean."""
    mean = float(score.mean())
    return float((score * (float(attention.mean()) / mean)).mean()) if mean > 0 else 0.0
