"""A rule that keeps what it was shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaptprune import Pruner
from adaptprune.cues import VisualTokens


@dataclass(frozen=True)
class Spy(Pruner):
    """Keeps the first tokens, and what it was shown."""

    cue: str = "rows"
    name = "spy"

    @property
    def needs(self):
        return frozenset(self.cue.split("+"))

    def select(self, tokens, num_keep):
        SHOWN.append(tokens)
        return torch.arange(num_keep)


SHOWN: list[VisualTokens] = []
