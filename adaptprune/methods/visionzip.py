"""VisionZip: dominant tokens by the tower's attention, and what is left in a few merged ones (arXiv 2412.04467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction
from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest, others


@dataclass(frozen=True)
class VisionZip(Pruner):
    """Dominant tokens, and contextual ones that the others are merged into (https://arxiv.org/abs/2412.04467).

    Of M tokens, ``floor(contextual * M)`` are contextual. The dominant ones are the tower's class token itself, where
    there is one, and the patches of highest attention (summed over heads, last layer but one). Of the rest, contextual
    targets stand at equal steps; each other token is assigned to the target that its key (mean over heads, of length
    1) is most like, and a target goes on as itself plus the mean of what was assigned to it. Order: class token,
    dominant patches, contextual tokens; the places are those of the patches that stay, and of one more patch for the
    class token.

    Parameters
    ----------
    contextual : float
        Fraction of the budget; published are 30 of 192, 20 of 128 and 10 of 64. The class token comes before them.
    class_token : bool
        Whether the class token is handed on, where the tower has one.
    """

    layer: int = 0
    contextual: float = 0.15625
    class_token: bool = True

    name: ClassVar[str] = "visionzip"
    summary: ClassVar[str] = "dominant tokens by the tower's attention, the others merged into a few"
    paper: ClassVar[str] = "arXiv 2412.04467"
    site: ClassVar[str] = "encoder"
    cost: ClassVar[str] = "O(HN + MND)"

    def __post_init__(self) -> None:
        fraction("contextual", self.contextual)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"tower:-2", "class_state"} if self.class_token else {"tower:-2"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.tower[-2].attention.detach().double().sum(dim=0)

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        patches, carrier, targets, _ = self._parts(tokens, num_keep)
        return torch.cat([patches, carrier, targets]).sort().values

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        patches, carrier, targets, left = self._parts(tokens, keep.numel())
        hidden = tokens.hidden
        merged = hidden[targets].double()
        if len(targets) and len(left):
            keys = directions(tokens.tower[-2].keys.detach().double().mean(dim=0))
            nearest = (keys[left] @ keys[targets].T).argmax(dim=1)
            counts = torch.bincount(nearest, minlength=len(targets)).clamp_min(1)
            sums = torch.zeros_like(merged).index_add_(0, nearest, hidden[left].double())
            merged = merged + sums / counts[:, None]
        front = [tokens.class_state[None].to(hidden)] if len(carrier) and tokens.class_state is not None else []
        return torch.cat([*front, hidden[patches], merged.to(hidden.dtype)])

    def _parts(self, tokens: VisualTokens, num_keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Dominant patches, the place of the class token (none or one), targets, and what is merged into these."""
        score = self.score(tokens)
        with_class = int(self.class_token and tokens.tower[-2].has_class and tokens.class_state is not None)
        contextual = min(int(self.contextual * num_keep), num_keep - with_class)
        patches = highest(score, num_keep - contextual - with_class)
        rest = others(patches, len(tokens))
        targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else rest[:0]
        left = others(torch.cat([patches, targets]), len(tokens))
        carrier = left[highest(score[left], with_class)]
        return patches, carrier, targets, left
