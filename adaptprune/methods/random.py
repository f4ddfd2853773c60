"""Random: the baseline that embarrasses published rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.cues import VisualTokens
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class Random(Pruner):
    """A seeded permutation of the tokens, cut and sorted.

    Parameters
    ----------
    seed : int
        The same seed keeps the same places of an image in every prompt and batch row; the images of one prompt differ.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "a seeded random subset (baseline)"
    site: ClassVar[str] = "any"
    cost: ClassVar[str] = "O(N)"

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, 2**32 - 1)
        super().__post_init__()

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        # drawn on the CPU so that every device keeps the same tokens
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(tokens.coords[0, 0]))
        order = torch.randperm(len(tokens), generator=generator)
        return order[:num_keep].sort().values.to(tokens.hidden.device)
