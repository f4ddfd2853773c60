"""EVS: of a video, what is new against the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.errors import AdaptPruneError
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class EVS(Pruner):
    """Keep what differs most from the same cell of the frame before (efficient video sampling).

    A token counts ``1 - cos`` of its feature to that of the same cell one frame earlier; the first frame stays whole,
    as far as the budget goes. Frames are the grids that share a budget.
    """

    layer: int = 0

    name: ClassVar[str] = "evs"
    summary: ClassVar[str] = "of a video, what is new against the frame before"
    paper: ClassVar[str] = "EVS"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(ND)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.features is not None
        features, coords = directions(tokens.features), tokens.coords.tolist()
        frames = sorted({grid for grid, _, _ in coords})
        if len(frames) < 2:
            raise AdaptPruneError(
                "evs compares frames, and there is one: it is for videos. Use divprune, which compares the tokens of a "
                "picture."
            )
        earlier = dict(zip(frames[1:], frames[:-1], strict=True))
        places = {tuple(cell): number for number, cell in enumerate(coords)}
        before = torch.tensor([places.get((earlier.get(grid, -1), row, column), -1) for grid, row, column in coords])
        before = before.to(features.device)
        new = 1 - (features * features[before.clamp_min(0)]).sum(dim=1)
        return new.masked_fill(before < 0, torch.inf)
