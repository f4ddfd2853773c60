"""TOPS: relevance, coverage and diversity at once, at several depths (arXiv 2606.27161)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import finite_not_negative
from adaptprune.cues import VisualTokens
from adaptprune.methods.schedules import check_layers, scaled
from adaptprune.methods.similar import tower_attention
from adaptprune.ops import balanced
from adaptprune.pruner import Pruner


@dataclass(frozen=True)
class TOPS(Pruner):
    """Token optimal preservation sets, at three depths (https://arxiv.org/abs/2606.27161).

    Each round keeps the highest ``r_i + alpha d_i + coverage c_i``: d is 1 - the highest cosine to a kept token, c what
    the token would cover that the kept ones do not, and r relevance, each divided by its mean. Before the decoder, r is
    the tower's attention (last layer but one, mean over heads) and cosines are of projected features; within it, r is
    the last prompt token's attention, and cosines are of hidden states. 2 T tokens are kept before the decoder, T and
    T / 4 at `layers`.

    Parameters
    ----------
    keep_ratio, num_keep
        What is kept as a mean over all layers of the decoder: T is the largest whole number for which
        ``min(N, 2 T)``, ``min(N, T)`` and ``min(N, T / 4)`` stay within it.
    layers : tuple of 2 int
        Of a decoder of 32 layers; in proportion in others.
    alpha, coverage : float
        By publication 0.5, and 0.5 / 1 / 1 (128 / 64 / 32 tokens on LLaVA-1.5-7B).
    """

    layer: int = dataclasses.field(default=0, init=False)
    positions: str = "packed"
    layers: tuple[int, int] = (12, 24)
    alpha: float = 0.5
    coverage: float = 1.0

    name: ClassVar[str] = "tops"
    summary: ClassVar[str] = "relevance, diversity and coverage in one sum, before the decoder and twice within it"
    paper: ClassVar[str] = "arXiv 2606.27161"
    site: ClassVar[str] = "both"
    cost: ClassVar[str] = "O(N^2 (D + M))"

    def __post_init__(self) -> None:
        check_layers(self.layers, count=2)
        for option in ("alpha", "coverage"):
            finite_not_negative(option, getattr(self, option))
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"features", "tower:-2", "attention"})

    def needs_at(self, layer: int, num_layers: int) -> frozenset[str]:
        return frozenset({"attention"} if layer else {"features", "tower:-2"})

    @property
    def smallest_layer(self) -> int:
        return 0  # its later stages alone look at attention

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return (0, *scaled(self.layers, num_layers))

    def counts(self, size: int, num_layers: int) -> dict[int, int]:
        stages, asked = self.stages(num_layers), self.target(size)
        lengths = [end - start for start, end in zip(stages, (*stages[1:], num_layers), strict=True)]

        def mean(base: int) -> float:
            parts = (min(size, 2 * base), min(size, base), min(size, base / 4))
            return sum(part * length for part, length in zip(parts, lengths, strict=True)) / num_layers

        low, high = 1, 4 * size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if mean(middle) <= asked + 1e-9 else (low, middle - 1)
        kept = (min(size, 2 * low), min(size, low), max(1, low // 4))
        return dict(zip(stages, kept, strict=True))

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        if tokens.layer == 0:
            assert tokens.features is not None
            features, relevance = tokens.features, tower_attention(tokens)
        else:
            assert tokens.attention is not None
            features, relevance = tokens.hidden, tokens.attention.detach().double().mean(dim=0)
        return balanced(features, num_keep, relevance=relevance, diversity=self.alpha, coverage=self.coverage)

    def warm_up(self) -> None:
        balanced(torch.eye(2), 2, relevance=torch.ones(2))
