"""DeFT: a generous first choice by the tower, the final one half way up the decoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.checks import fraction
from adaptprune.cues import VisualTokens
from adaptprune.methods.schedules import within
from adaptprune.methods.similar import tower_attention
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class DeFT(Pruner):
    """Two stages: before the decoder by the tower's attention, before its middle layer by that of the instruction.

    Of N tokens, ``K + ceil(margin * (N - K))`` stay at first: those with the highest mean over heads of the attention
    in the tower's last layer but one, the class token's or, without one, received. K stay before layer L // 2: those
    with the highest mean over heads and all rows of the instruction, at the layer before it.

    Parameters
    ----------
    keep_ratio : float
        K is what this leaves of N: the final count, not the mean over layers.
    margin : float
        Fraction of the tokens beyond K that get as far as the second stage.
    """

    layer: int = dataclasses.field(default=0, init=False)
    margin: float = 0.2

    name: ClassVar[str] = "deft"
    summary: ClassVar[str] = "some more than asked for by the tower, then what the instruction attends to"
    paper: ClassVar[str] = "DeFT"
    cost: ClassVar[str] = "O(HTN)"
    site: ClassVar[str] = "both"

    def __post_init__(self) -> None:
        fraction("margin", self.margin)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:-2", "rows"})

    def needs_at(self, layer: int, num_layers: int) -> frozenset[str]:
        return frozenset({"rows" if layer else "tower:-2"})

    @property
    def smallest_layer(self) -> int:
        return 0  # where the tower decides

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return within((0, num_layers // 2), num_layers)

    def counts(self, size: int, num_layers: int) -> dict[int, int]:
        first, second = self.stages(num_layers)
        final = self.target(size)
        return {first: final + math.ceil(self.margin * (size - final) - 1e-9), second: final}

    def score(self, tokens: VisualTokens) -> Tensor:
        if not tokens.layer:
            return tower_attention(tokens)
        assert tokens.rows is not None
        return tokens.rows.double().mean(dim=(0, 1))
