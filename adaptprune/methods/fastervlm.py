"""FasterVLM: keep what the vision tower's class token attends to (arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.methods.similar import tower_attention
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class FasterVLM(Pruner):
    """The highest attention of the tower's class token, at its last layer but one (https://arxiv.org/abs/2412.01818).

    The mean over heads; where the tower has no class token, what each token receives.
    """

    layer: int = 0

    name: ClassVar[str] = "fastervlm"
    summary: ClassVar[str] = "the tokens that the tower's class token attends to most"
    paper: ClassVar[str] = "arXiv 2412.01818"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(HN)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tower_attention(tokens)
