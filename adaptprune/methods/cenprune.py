"""Cen-Prune: diversity of what is left once the picture's mean is taken out, times distinctiveness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import one_of
from adaptprune.cues import VisualTokens, min_max
from adaptprune.methods.similar import SIGNS, likeness_to_text
from adaptprune.ops import dpp, max_min
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner

FORMS = {
    "maxmin": "the token that is farthest from its nearest kept one, times its distinctiveness",
    "dpp": "a determinantal point process, weighted by distinctiveness and relevance to the text",
}


@dataclass(frozen=True)
class CenPrune(Pruner):
    """Centred similarity and raw distinctiveness, on top of DivPrune ("maxmin") or CDPruner ("dpp"); both parts count.

    Similarity is the cosine of features less their mean over the tokens. Distinctiveness g is minus the mean cosine of
    the features as they are to all others, stretched to 0..1. "maxmin" keeps the token of the highest g first, then the
    highest ``g_i * min_s (1 - similarity_is)``. "dpp" is the greedy MAP of ``diag(r g) similarity diag(r g)``, with r
    the mean cosine to the instruction's embeddings, stretched to 0..1 after its sign.

    Parameters
    ----------
    form : {"maxmin", "dpp"}
    sign : {"negative", "positive"}
        Of r, where there is one: "negative" counts tokens unlike the text as relevant (see `CDPruner`).
    """

    layer: int = 0
    form: str = "maxmin"
    sign: str = "negative"

    name: ClassVar[str] = "cenprune"
    summary: ClassVar[str] = "diversity of features less their mean, times how distinct each is"
    paper: ClassVar[str] = "Cen-Prune"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(MND)"

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)
        one_of("sign", self.sign, SIGNS)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        distinct = min_max(distinctiveness(tokens.features))
        wide = tokens.features.detach().double()
        centred = wide - wide.mean(dim=0)
        if self.form == "maxmin":
            return max_min(centred, num_keep, quality=distinct, seed="quality")
        relevance = min_max(likeness_to_text(tokens, self.sign))
        return dpp(num_keep, factors=centred, quality=relevance * distinct, unit=True)

    def warm_up(self) -> None:
        two = torch.eye(2, dtype=torch.float64)
        if self.form == "maxmin":
            max_min(two, 2, seed="quality")
        else:
            dpp(2, factors=two, unit=True)


def distinctiveness(features: Tensor) -> Tensor:
    """Minus the mean cosine of each token to all others, (N,) float64; 0 of a single one."""
    unit = directions(features)
    own = unit.square().sum(dim=1)
    return -(unit @ unit.sum(dim=0) - own) / max(1, len(own) - 1)
