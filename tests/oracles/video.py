"""Rules for video, frame by frame in plain Python and float64, from their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from tests.oracles.encoder_picks import best, cosine, f64, shares


def frames(coords: np.ndarray) -> list[list[int]]:
    numbers = sorted({int(grid) for grid in coords[:, 0]})
    return [[i for i in range(len(coords)) if coords[i, 0] == number] for number in numbers]


def evs(features: np.ndarray, coords: np.ndarray, keep: int) -> list[int]:
    features = f64(features)
    parts = frames(coords)
    score = dict.fromkeys(parts[0], math.inf)
    for before, now in itertools.pairwise(parts):
        same = {tuple(coords[i, 1:].tolist()): i for i in before}
        for i in now:
            score[i] = 1 - cosine(features[i], features[same[tuple(coords[i, 1:].tolist())]])
    return sorted(best(range(len(features)), [score[i] for i in range(len(features))], keep))


def vidcom2(
    features: np.ndarray,
    coords: np.ndarray,
    keep: int,
    *,
    channels: float = 0.5,
    nudge: Mapping[int, float] | None = None,
    bandwidths: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1, 2),
) -> list[int]:
    """`nudge` is added to the weights of frames."""
    features = f64(features)
    count, width = features.shape
    spread = [sum((x - features[:, c].mean()) ** 2 for x in features[:, c]) / count for c in range(width)]
    steady = sorted(best(range(width), [-s for s in spread], max(1, int(width * channels))))
    features = np.array([x / (math.sqrt(sum(c * c for c in x)) or 1.0) for x in features[:, steady]])

    def closeness(i: int, members: list[int]) -> float:
        squared = float(((features[i] - features[members].mean(axis=0)) ** 2).sum())
        return sum(math.exp(-squared / (2 * a)) for a in bandwidths)

    parts = frames(coords)
    frame = {i: part for part in parts for i in part}
    score = [closeness(i, [*range(count)]) + closeness(i, frame[i]) for i in range(count)]
    means = [sum(closeness(i, [*range(count)]) for i in part) / len(part) for part in parts]
    lowest = min(means)
    powers = [math.exp((lowest - mean) / 0.01) for mean in means]
    p = [power / sum(powers) for power in powers]
    weights = [1 + x - sum(p) / len(p) + (nudge or {}).get(f, 0.0) for f, x in enumerate(p)]
    quotas = shares(keep, weights, [len(part) for part in parts])
    away = [-s for s in score]
    return sorted(i for part, quota in zip(parts, quotas, strict=True) for i in best(part, away, quota))
