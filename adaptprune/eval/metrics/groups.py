"""Plain accuracy in percent, overall and by group (GQA, ScienceQA, SEED-Bench, VQA)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


class GroupMeans:
    """Means of scores from 0 to 1, in percent; the first is over everything."""

    def __init__(self, total: str = "accuracy") -> None:
        self._total = total
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, score: float, groups: Iterable[str] = ()) -> None:
        for name in (self._total, *groups):
            self._sums[name] += score
            self._counts[name] += 1

    def result(self) -> dict[str, float]:
        names = [self._total, *sorted(name for name in self._counts if name != self._total)]
        return {name: 100 * self._sums[name] / self._counts[name] for name in names if self._counts[name]}
