"""Rules that weigh what a token adds to those already kept: numpy, float64, worked out anew for every pick."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from adaptprune.cues import VisualTokens
from tests.oracles.picking import (
    Objective,
    bounded,
    cosine,
    cosines,
    coverage,
    determinant,
    f64,
    max_min,
    min_max,
    stretched,
)


def divprune(tokens: VisualTokens) -> Objective:
    features = f64(tokens.features)
    distance = 1 - cosines(features, features)
    count = len(features)
    nearest = [min((distance[i, j] for j in range(count) if j != i), default=0.0) for i in range(count)]
    return max_min(distance, np.ones(count), np.array(nearest))


def distinctiveness(features: np.ndarray) -> np.ndarray:
    """Minus the mean raw cosine with all the others."""
    table, count = cosines(features, features), len(features)
    raw = [-sum(table[i, j] for j in range(count) if j != i) / max(1, count - 1) for i in range(count)]
    return np.array(raw)


def text_relevance(tokens: VisualTokens, sign: str) -> np.ndarray:
    """The mean over text tokens of minus (or plus) the cosine with each."""
    table = cosines(f64(tokens.features), f64(tokens.text))
    return {"negative": -1.0, "positive": 1.0}[sign] * table.mean(axis=1)


def cenprune(tokens: VisualTokens, form: str = "maxmin", sign: str = "negative") -> Objective:
    features = f64(tokens.features)
    centred = features - features.mean(axis=0)
    similarity, raw = cosines(centred, centred), distinctiveness(features)
    own = min_max(raw)
    if form == "maxmin":
        return max_min(1 - similarity, own, own, 2 * stretched(raw))
    relevance = text_relevance(tokens, sign)
    scale = min_max(relevance) * own
    slack = 4 * (stretched(raw) + stretched(relevance))
    return determinant(np.diag(scale) @ similarity @ np.diag(scale), slack)


def cdpruner_kernel(tokens: VisualTokens, sign: str = "negative") -> np.ndarray:
    features = f64(tokens.features)
    raw = text_relevance(tokens, sign)
    spread = raw.max() - raw.min()
    relevance = (raw - raw.min() + 1e-6) / spread if spread > 0 else np.zeros_like(raw)
    return np.diag(relevance) @ cosines(features, features) @ np.diag(relevance)


def cdpruner(tokens: VisualTokens, sign: str = "negative") -> Objective:
    return determinant(cdpruner_kernel(tokens, sign))


def cdpruner_halves(tokens: VisualTokens, count: int, sign: str = "negative") -> list[tuple[Objective, list[int], int]]:
    """Of each half: its objective (over its own indices), its tokens, and how many it gives."""
    kernel, number = cdpruner_kernel(tokens, sign), len(tokens)
    middle = math.ceil(number / 2)
    parts = []
    for members, share in ((list(range(middle)), math.ceil(count / 2)), (list(range(middle, number)), count // 2)):
        parts.append((determinant(kernel[np.ix_(members, members)]), members, share))
    return parts


def otprune(tokens: VisualTokens) -> Objective:
    columns = f64(tokens.features).copy()
    for d in range(columns.shape[1]):
        length = math.sqrt(sum(columns[:, d] ** 2))
        columns[:, d] = columns[:, d] / length if length > 0 else 0.0
    gram = columns @ columns.T
    return determinant(np.eye(len(gram)) + 0.01 * gram @ gram.T)


def tower_mean(tokens: VisualTokens, number: int = -2) -> np.ndarray:
    heads = f64(tokens.tower[number].attention)
    return sum(heads) / len(heads)


def scope(tokens: VisualTokens, alpha: float = 1.0) -> Objective:
    features, attention = f64(tokens.features), tower_mean(tokens)
    similarity, count = cosines(features, features), len(features)

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        others = [j for j in range(count) if j not in chosen]
        best = np.array([max([0.0, *(similarity[j, s] for s in chosen)]) for j in range(count)])
        gains = np.maximum(0.0, similarity - best)[:, others].sum(axis=1)
        values = gains * attention**alpha
        return values, 1e-14 * count * attention**alpha + 1e-9 * values

    return worth


def text_scores(tokens: VisualTokens, entropy_share: float = 0.2) -> np.ndarray:
    """EADP's score before smoothing: half that of the mean instruction, half that of the sharpest text tokens."""
    features, text = f64(tokens.features), f64(tokens.text)
    rows, entropies = [], []
    for word in text:
        score = np.array([-cosine(v, word) for v in features])
        weights = np.exp(100 * score - (100 * score).max())
        chances = weights / weights.sum()
        rows.append(score)
        entropies.append(-sum(p * math.log(p) for p in chances if p > 0))
    count = max(1, math.ceil(entropy_share * len(text)))
    sharpest = sorted(range(len(text)), key=lambda t: (entropies[t], t))[:count]
    low = min(entropies[t] for t in sharpest)
    shares = {t: math.exp(-(entropies[t] - low) / 0.01) for t in sharpest}
    local = sum(shares[t] / sum(shares.values()) * rows[t] for t in sharpest)
    whole = np.array([-cosine(v, text.mean(axis=0)) for v in features])
    return min_max(0.5 * whole + 0.5 * local)


def smoothed(values: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """[1, 2, 1] x [1, 2, 1] on each grid, over the cells that are there."""
    place = {tuple(cell): i for i, cell in enumerate(coords.tolist())}
    result = np.zeros_like(values)
    for (grid, row, column), i in place.items():
        total = weight = 0.0
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near = place.get((grid, row + down, column + right))
                if near is not None:
                    share = (2 - abs(down)) * (2 - abs(right))
                    total, weight = total + share * values[near], weight + share
        result[i] = total / weight
    return result


def eadp_scores(tokens: VisualTokens, beta: float = 1.0, entropy_share: float = 0.2) -> np.ndarray:
    return smoothed(text_scores(tokens, entropy_share), tokens.coords.numpy()) ** beta


def eadp(tokens: VisualTokens, beta: float = 1.0, entropy_share: float = 0.2) -> Objective:
    features = f64(tokens.features)
    return coverage(0.5 * (1 + cosines(features, features)), eadp_scores(tokens, beta, entropy_share))


def tops(tokens: VisualTokens, alpha: float = 0.5, coverage: float = 1.0) -> Objective:
    """Before layer 0 by the features and the tower's attention, later by hidden states and the last row's.

    Relevance is divided by its mean over all tokens, the other two by theirs over those that can still be picked.
    """
    early = tokens.layer == 0
    space = f64(tokens.features if early else tokens.hidden)
    relevance = tower_mean(tokens) if early else f64(tokens.attention).mean(axis=0)
    similarity, count = cosines(space, space), len(space)

    def over_mean(values: np.ndarray, members: list[int]) -> np.ndarray:
        mean = values[members].mean()
        return values / mean if mean > 1e-12 else np.zeros_like(values)

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if not chosen:
            return bounded(relevance)
        others = [j for j in range(count) if j not in chosen]
        best = np.array([max(similarity[j, s] for s in chosen) for j in range(count)])
        covers = np.maximum(0.0, similarity - best)[:, others].sum(axis=1)
        total = over_mean(relevance, list(range(count))) + alpha * over_mean(1 - best, others)
        return bounded(total + coverage * over_mean(covers, others), 100.0)

    return worth


def sensitivity(tokens: VisualTokens, directions: int = 64, step: float = 0.01, seed: int = 0) -> np.ndarray:
    """How far the projector's output moves along random directions, token by token."""
    assert tokens.projector_input is not None
    assert tokens.project is not None
    count, *shape = tokens.projector_input.shape
    drawn = torch.randn(directions, *shape, generator=torch.Generator("cpu").manual_seed(seed))
    lengths = drawn.double().flatten(1).square().sum(dim=1).sqrt()
    moves = step * drawn.double() / lengths.view(-1, *[1] * len(shape))
    result = np.zeros(count)
    for i, start in enumerate(tokens.projector_input):
        ahead, behind = (tokens.project((start.double() + way * moves).to(start.dtype)) for way in (1, -1))
        moved = (ahead.double() - behind.double()).square().sum(dim=1).sqrt()
        result[i] = float(moved.mean()) / (2 * step)
    return result


def zooprune(tokens: VisualTokens, directions: int = 64, step: float = 0.01, seed: int = 0) -> Objective:
    features = f64(tokens.features)
    scores = sensitivity(tokens, directions, step, seed)
    return max_min(1 - cosines(features, features), min_max(scores), scores)
