"""AdaptPrune before the decoder, where serving engines can prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adaptprune.checks import one_of
from adaptprune.cues import VisualTokens
from adaptprune.methods.adaptprune import centre_weight, check_nms, suppressed, warm_up_nms
from adaptprune.methods.hawk import matched
from adaptprune.methods.similar import tower_attention
from adaptprune.pruner import Pruner

SOURCES = {"tower": "tower:-2", "affinity": "affinity"}


@dataclass(frozen=True)
class AdaptPruneEncoder(Pruner):
    """AdaptPrune's adaptive NMS before the first layer (https://arxiv.org/abs/2503.08019 has it within the decoder).

    The same positional correction and the same greedy suppression; what attention and keys are to it there, the vision
    tower's attention (or HAWK's match of the instruction, which knows the question) and projected features are here.

    Parameters
    ----------
    cue : {"tower", "affinity"}
        "tower": the attention of its class token, else what a token receives, at its last layer but one. "affinity":
        HAWK's score, raised to 0 if its lowest is below.
    distance_limit, distance_sigma, similarity_sigma, centre_sigma, backend
        As AdaptPrune has them; similarity is the cosine of projected features.
    """

    layer: int = 0
    cue: str = "tower"
    distance_limit: float = 5.0
    distance_sigma: float = 1.5
    similarity_sigma: float = 0.05
    centre_sigma: float = 1.0
    backend: str = "auto"

    name: ClassVar[str] = "adaptprune-encoder"
    summary: ClassVar[str] = "AdaptPrune before the decoder, by the tower's attention or the instruction's match"
    paper: ClassVar[str] = "after arXiv 2503.08019"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(HN + MD)"

    def __post_init__(self) -> None:
        one_of("cue", self.cue, SOURCES)
        check_nms(self)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", SOURCES[self.cue]})

    def score(self, tokens: VisualTokens) -> Tensor:
        if self.cue == "tower":
            attention = tower_attention(tokens)
        else:
            assert tokens.affinity is not None
            attention = matched(tokens.affinity)
            attention = attention - attention.min().clamp_max(0)  # the NMS takes nothing below 0
        return attention * centre_weight(tokens.coords, self.centre_sigma).to(attention)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        return suppressed(self, self.score(tokens), tokens.features, tokens.coords, num_keep)

    def warm_up(self) -> None:
        warm_up_nms(self.backend)
