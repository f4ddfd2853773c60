"""SIEVE: attended tokens that hold what the text does not say, and that differ in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptprune.checks import fraction, whole
from adaptprune.cues import VisualTokens
from adaptprune.ops.vectors import directions
from adaptprune.pruner import Pruner, highest, ranked


@dataclass(frozen=True)
class SIEVE(Pruner):
    """Rank by attention and by what is left of a token outside the span of the text; suppress what is alike in that.

    1. The mean of the instruction's hidden states is subtracted from these (T) and from the visual ones (v).
    2. r = v - the ridge projection of v on the rows of T, ``V diag(s^2 / (s^2 + lambda)) V^T v``; lambda is the first
       squared singular value with which their running sum reaches `energy` of the whole.
    3. score = ``a^2 * (|r| / |v|)^2``, a the mean over `heads` heads of the last prompt token's attention at layer K-1.
    4. Greedy: keep the highest, multiply every other by ``1 - cos^2`` between its r and that of the kept one.

    One instruction token spans nothing once it is centred: r = v.

    Parameters
    ----------
    heads : int
        How many heads count: those whose last row has most visual mass.
    energy : float
        Fraction of the sum of squared singular values.
    """

    heads: int = 12
    energy: float = 0.75

    name: ClassVar[str] = "sieve"
    summary: ClassVar[str] = "attended tokens that differ in what the text does not say"
    paper: ClassVar[str] = "SIEVE"
    cost: ClassVar[str] = "O(NTD + M^2 D)"

    def __post_init__(self) -> None:
        whole("heads", self.heads, 1, 2**31)
        fraction("energy", self.energy)
        super().__post_init__()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rows", "text_hidden"})

    def score(self, tokens: VisualTokens) -> Tensor:
        return self._scores(tokens)[0]

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        scores, residual = self._scores(tokens)
        return suppressed(scores, residual, num_keep)

    def _scores(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Scores before any is kept, (N,), and residuals, (N, D)."""
        assert tokens.rows is not None
        assert tokens.text_hidden is not None
        last = tokens.rows[:, -1].double()
        attention = last[highest(last.sum(dim=1), self.heads)].mean(dim=0)
        text = tokens.text_hidden.double()
        centre = text.mean(dim=0)
        visual = tokens.hidden.double() - centre
        residual = outside(visual, text - centre, self.energy)
        before, left = visual.square().sum(dim=1), residual.square().sum(dim=1)
        return attention.square() * left / before.masked_fill(before == 0, 1), residual


def outside(visual: Tensor, text: Tensor, energy: float) -> Tensor:
    """What a ridge projection on the span of `text`, (T, D), leaves of `visual`, (N, D)."""
    # (T, T) has the squared singular values, and the dual form of the ridge the same projection
    gram = text @ text.T
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
    running = squares.cumsum(dim=0)
    if running[-1] == 0:
        return visual
    reached = running >= energy * running[-1] * (1 - 1e-9)  # of equal sums, rounding is not to take the next
    ridge = squares[int(reached.nonzero()[0])]
    inner = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return visual - torch.linalg.solve(inner, text @ visual.T).T @ text


def suppressed(scores: Tensor, residual: Tensor, count: int) -> Tensor:
    """Greedy picks, ascending: the highest score stays, all others are multiplied by 1 - cos^2 of their residuals.

    Scores only fall, so a token that began low matters only once the best has fallen as low: cosines are worked out
    for the first few, then for twice as many, until the last pick is above all that were left out.
    """
    order = ranked(scores)
    reach = 2 * count
    while True:
        part = order[:reach].sort().values
        bound = float(scores[order[reach]]) if reach < len(order) else -torch.inf
        picked = _greedy(scores[part], directions(residual[part]), count, bound)
        if picked is not None:
            return part[picked].sort().values
        reach *= 2


def _greedy(scores: Tensor, unit: Tensor, count: int, bound: float) -> Tensor | None:
    """The picks of all that are handed; None if one of these is not above `bound`."""
    factors = 1 - (unit @ unit.T).square().clamp_max(1)
    free = torch.ones_like(scores, dtype=torch.bool)
    picks: list[Tensor] = []
    for _ in range(count):
        open_ = scores.masked_fill(~free, -1)
        best = open_.argmax()
        if float(open_[best]) <= bound:
            return None
        picks.append(best)
        free[best] = False
        scores = scores * factors[best]
    return torch.stack(picks)
