"""CDPruner: diversity among the tokens, conditioned on the instruction (arXiv 2506.10967)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import one_of
from adaptprune.cues import VisualTokens, is_constant
from adaptprune.methods.similar import SIGNS, likeness_to_text
from adaptprune.ops import dpp
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class CDPruner(Pruner):
    """Greedy MAP of the determinantal point process ``diag(r) cos diag(r)`` (https://arxiv.org/abs/2506.10967).

    cos holds the cosines of the projected features, r the mean cosine of each token to the instruction's embeddings,
    after its sign stretched to ``(r - min + 1e-6) / (max - min)``; all zeros where they are equal.

    Parameters
    ----------
    sign : {"negative", "positive"}
        "negative" is LLaVA's published code, which negates the cosine; OpenVINO's port does not. Which one helps
        depends on the model.
    halves : bool
        OpenVINO's form: each half of the sequence has a process of its own, and half of the picks (the first half, one
        more of an odd number). r is stretched over all.
    """

    layer: int = 0
    sign: str = "negative"
    halves: bool = False

    name: ClassVar[str] = "cdpruner"
    summary: ClassVar[str] = "determinantal diversity of features, weighted by their relevance to the text"
    paper: ClassVar[str] = "arXiv 2506.10967"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(MN(D + M))"

    def __post_init__(self) -> None:
        one_of("sign", self.sign, SIGNS)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.features is not None
        likeness = likeness_to_text(tokens, self.sign)
        low, high = torch.aminmax(likeness)
        relevance = (likeness - low + 1e-6) / (high - low) if not is_constant(likeness) else torch.zeros_like(likeness)
        if not self.halves:
            return dpp(num_keep, factors=tokens.features, quality=relevance, unit=True)
        middle, first = (len(tokens) + 1) // 2, (num_keep + 1) // 2
        parts = [(slice(None, middle), first, 0), (slice(middle, None), num_keep - first, middle)]
        kept = [
            start + dpp(count, factors=tokens.features[part], quality=relevance[part], unit=True)
            for part, count, start in parts
            if count
        ]
        return torch.cat(kept)

    def warm_up(self) -> None:
        dpp(2, factors=torch.eye(2), unit=True)
