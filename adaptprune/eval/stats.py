"""Intervals: a bootstrap over pictures, paired, so that two columns are always compared on the same draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROWS = 64  # draws worked on at a time


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers; None where there was nothing to estimate."""
        return {name: round(x, 6) if np.isfinite(x) else None for name, x in vars(self).items()}


class Bootstrap:
    """Resamples of pictures, drawn once and used for every statistic.

    Parameters
    ----------
    pictures : sequence of str
        For each answer, the picture that it is about.
    draws : int
    seed : int
    """

    def __init__(self, pictures: list[str], draws: int = 2000, seed: int = 0) -> None:
        names = {name: place for place, name in enumerate(sorted(set(pictures)))}
        self._index = np.array([names[name] for name in pictures], dtype=np.intp)
        count = len(names)
        generator = np.random.default_rng(seed)
        # how often each picture is drawn (it fits a byte); the last row is the sample itself
        self._weights: NDArray[np.uint8] = np.ones((draws + 1, count), dtype=np.uint8)
        for start in range(0, draws, ROWS):
            size = min(ROWS, draws - start)
            self._weights[start : start + size] = generator.multinomial(count, np.full(count, 1 / count), size=size)

    def means(self, values: Array, chosen: NDArray[np.bool_] | None = None) -> Array:
        """Mean of `values` over each draw (last: over the sample itself), of the `chosen` answers only."""
        chosen = np.ones(len(values), dtype=bool) if chosen is None else chosen
        size = self._weights.shape[1]
        totals = np.bincount(self._index[chosen], weights=values[chosen], minlength=size)
        counts = np.bincount(self._index[chosen], minlength=size)
        result = np.empty(len(self._weights))
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may hold none of the chosen answers
            for start in range(0, len(result), ROWS):
                weights = self._weights[start : start + ROWS].astype(np.float64)
                result[start : start + ROWS] = (weights @ totals) / (weights @ counts)
        return result


def estimate(draws: Array) -> Estimate:
    """The sample's value with the central 95 % of the draws; draws without any answer do not count."""
    with np.errstate(invalid="ignore"):
        finite = draws[:-1][np.isfinite(draws[:-1])]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (np.nan, np.nan)
    return Estimate(float(draws[-1]), float(low), float(high))
