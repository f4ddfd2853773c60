"""V2Drop: tokens that a layer hardly changes leave, in stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.cues import VisualTokens
from adaptprune.methods.schedules import Dwindling


@dataclass(frozen=True)
class V2Drop(Dwindling):
    """Before several layers, keep the tokens whose hidden state the layer before has changed most.

    The score is the L2 norm of the difference between the states before layer K and those before layer K-1.

    Parameters
    ----------
    keep_ratio : float
        The mean over all layers; each stage keeps the same part of what it finds, as with `PyramidDrop`.
    layers : tuple of int
        See `adaptprune.methods.schedules.Staged`.
    """

    layers: tuple[int, ...] = (2, 8, 16)

    name: ClassVar[str] = "v2drop"
    summary: ClassVar[str] = "in stages, the tokens that the layer before changed most"
    paper: ClassVar[str] = "V2Drop"
    cost: ClassVar[str] = "O(ND)"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"previous_hidden"})

    def score(self, tokens: VisualTokens) -> Tensor:
        assert tokens.previous_hidden is not None
        return (tokens.hidden.double() - tokens.previous_hidden.double()).norm(dim=1)
