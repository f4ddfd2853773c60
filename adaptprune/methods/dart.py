"""DART: tokens that duplicate a few pivots least (arXiv 2502.11494)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import cosines
from adaptprune.pruner import Pruner, highest, ranked


@dataclass(frozen=True)
class DART(Pruner):
    """Keep a few pivots, and for each the tokens least like it (https://arxiv.org/abs/2502.11494).

    Pivots are the tokens whose cached key of layer K-1 has the largest L1 norm: of the visual ones, which are kept, and
    of the instruction. Pivot after pivot, visual before text and the largest norm first, takes its share of the tokens
    that are not yet taken: those of lowest cosine to it, among states after the decoder's last norm. What the division
    leaves over the last pivot takes, too. The release keeps about `pivots_visual` more than asked for; this keeps
    exactly as many. Fewer than that: the pivots of largest norm alone.

    Parameters
    ----------
    pivots_visual, pivots_text : int
        How many pivots; of the instruction no more than it has tokens.
    """

    pivots_visual: int = 4
    pivots_text: int = 4

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "a few pivots of large keys, and the tokens least like them"
    paper: ClassVar[str] = "arXiv 2502.11494"
    cost: ClassVar[str] = "O(ND)"

    def __post_init__(self) -> None:
        whole("pivots_visual", self.pivots_visual, 1, 2**31)
        whole("pivots_text", self.pivots_text, 0, 2**31)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rotated_keys", "final"})

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        assert tokens.rotated_keys is not None
        assert tokens.text_rotated_keys is not None
        assert tokens.final is not None
        assert tokens.text_final is not None
        visual = _largest(tokens.rotated_keys, min(self.pivots_visual, num_keep))
        words = _largest(tokens.text_rotated_keys, self.pivots_text)
        taken = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.final.device)
        taken[visual] = True
        missing = num_keep - len(visual)
        alike = cosines(torch.cat([tokens.final[visual], tokens.text_final[words]]), tokens.final)
        share, over = divmod(missing, len(alike))
        for number, cosine in enumerate(alike):
            count = share + (over if number == len(alike) - 1 else 0)
            taken[highest(-cosine.masked_fill(taken, torch.inf), count)] = True
        return taken.nonzero()[:, 0]


def _largest(keys: Tensor, count: int) -> Tensor:
    """Places of the keys of largest L1 norm, the largest first; of equals the lower index."""
    return ranked(keys.double().abs().sum(dim=1))[:count]
