"""Decoder-side rules, in numpy and float64, and how many tokens rules with several stages keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from adaptprune.cues import VisualTokens
from tests.oracles.picking import Objective, bounded, by_score, cosine, cosines, f64


def top(scores: Sequence[float], count: int, among: Sequence[int] | None = None) -> list[int]:
    """Places of the highest, the highest first; of equals, the lower index."""
    places = range(len(scores)) if among is None else among
    return sorted(places, key=lambda i: (-scores[i], i))[:count]


# Plain rankings


def pyramiddrop(tokens: VisualTokens) -> Objective:
    return by_score(f64(tokens.next_attention).mean(axis=0))


def v2drop(tokens: VisualTokens) -> Objective:
    moved = f64(tokens.hidden) - f64(tokens.previous_hidden)
    return by_score(np.array([math.sqrt(sum(change**2)) for change in moved]))


def deft(tokens: VisualTokens) -> Objective:
    if tokens.layer == 0:
        return by_score(f64(tokens.tower[-2].attention).mean(axis=0))
    rows = f64(tokens.rows)
    return by_score(sum(rows[h, t] for h in range(rows.shape[0]) for t in range(rows.shape[1])))


def priortr(tokens: VisualTokens, prior: str = "mean") -> Objective:
    rows = f64(tokens.rows).mean(axis=0)
    before = rows[0]
    after = {"mean": rows.mean(axis=0), "last": rows[-1]}[prior]
    p, q = (x / (x.sum() + 1e-10) for x in (after, before))
    scores = [a * math.log((a + 1e-10) / (b + 1e-10)) for a, b in zip(p, q, strict=True)]
    return by_score(np.array(scores))


# SIEVE


def sieve_residuals(tokens: VisualTokens, energy: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
    """Visual tokens without the text's centre, and what a ridge projection on the centred text leaves of them."""
    hidden, text = f64(tokens.hidden), f64(tokens.text_hidden)
    centre = text.mean(axis=0)
    visual, words = hidden - centre, text - centre
    gram = words @ words.T
    powers = sorted((max(0.0, p) for p in np.linalg.eigvalsh(gram)), reverse=True)
    if sum(powers) <= 1e-20 * len(words):
        return visual, visual
    reached, ridge = 0.0, powers[-1]
    for power in powers:
        reached += power
        if reached >= energy * sum(powers):
            ridge = power
            break
    # W diag(s^2 / (s^2 + ridge)) W^T, in the form that needs no singular vectors
    projection = words.T @ np.linalg.solve(gram + ridge * np.eye(len(words)), words)
    return visual, visual - visual @ projection.T


def sieve(tokens: VisualTokens, heads: int = 12, energy: float = 0.75) -> Objective:
    last = f64(tokens.rows)[:, -1]
    attention = last[top(last.sum(axis=1), heads)].mean(axis=0)
    visual, residual = sieve_residuals(tokens, energy)
    size = [math.sqrt(v @ v) for v in visual]
    own = np.array(
        [a**2 * ((r @ r) / s**2 if s > 0 else 0.0) for a, r, s in zip(attention, residual, size, strict=True)]
    )

    alike = cosines(residual, residual)

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        values = own.copy()
        for i in range(len(values)):
            for s in chosen:
                values[i] *= 1 - alike[i, s] ** 2
        values, slack = bounded(values)
        return values, slack + (1e-13 * own if chosen else 0.0)  # 1 - cos^2 of what is parallel is 0 but for rounding

    return worth


# DART


def dart(tokens: VisualTokens, count: int, pivots_visual: int = 4, pivots_text: int = 4) -> list[int]:
    final = f64(tokens.final)
    visual = top(np.abs(f64(tokens.rotated_keys)).sum(axis=1), pivots_visual)
    words = top(np.abs(f64(tokens.text_rotated_keys)).sum(axis=1), pivots_text)
    if count <= pivots_visual:
        return sorted(visual[:count])
    pivots = [final[i] for i in visual] + [f64(tokens.text_final)[t] for t in words]
    quota = (count - pivots_visual) // len(pivots)
    chosen = list(visual)
    for number, pivot in enumerate(pivots):
        wanted = quota if number < len(pivots) - 1 else count - len(chosen)
        left = [i for i in range(len(final)) if i not in chosen]
        chosen += sorted(left, key=lambda i: (cosine(final[i], pivot), i))[:wanted]
    return sorted(chosen)


# VLM-Pruner


def vlm_pruner(
    tokens: VisualTokens,
    count: int,
    *,
    pivots: int = 4,
    channels: int = 256,
    batch: int = 16,
    threshold: float = 0.8,
    threshold_step: float = 0.1,
) -> list[int]:
    """Where fewer than a batch lie under the threshold, those join, and it is raised.

    The pivots are far apart in all channels of the keys; only cosines are restricted to a few of the hidden states'.
    """
    keys, hidden, coords = (f64(t) for t in (tokens.rotated_keys, tokens.hidden, tokens.coords))
    hidden = hidden[:, top(hidden.var(axis=0), channels)]
    number = len(hidden)
    chosen = top(np.abs(keys).sum(axis=1), 1)
    while len(chosen) < min(pivots, count):
        gap = [min(math.dist(keys[i], keys[s]) for s in chosen) for i in range(number)]
        chosen += top(gap, 1, [i for i in range(number) if i not in chosen])
    alike = cosines(hidden, hidden)
    sides = {g: (coords[coords[:, 0] == g, 1:].max(axis=0) + 1).max() for g in coords[:, 0]}
    near = np.ones((number, number))
    for i in range(number):
        for j in range(number):
            near[i, j] += 0.5 * _cells(coords[i], coords[j], sides) / (24 * math.sqrt(2))
    while len(chosen) < count:
        score = [max(alike[i, s] * near[i, s] for s in chosen) for i in range(number)]
        under = [i for i in range(number) if i not in chosen and score[i] < threshold]
        chosen += sorted(under, key=lambda i: (score[i], i))[: min(batch, count - len(chosen))]
        if len(under) < batch:
            threshold += threshold_step
    return sorted(chosen)


def _cells(one: np.ndarray, other: np.ndarray, sides: dict[float, float]) -> float:
    """The distance between two tokens where the larger side of their grid is 24 cells."""
    if one[0] != other[0]:
        return 24 * math.sqrt(2)
    return math.dist(one[1:], other[1:]) * 24 / sides[one[0]]


# SparseVLM


def raters(tokens: VisualTokens) -> list[int]:
    features, text = f64(tokens.features), f64(tokens.text)
    looked = np.zeros(len(text))
    for v in features:
        logits = np.array([float(v @ t) for t in text])
        weights = np.exp(logits - logits.max())
        looked += weights / weights.sum() / len(features)
    above = [t for t in range(len(text)) if looked[t] > looked.mean() * (1 + 1e-12)]
    return above or list(range(len(text)))  # none is above the mean: they are all equal


def sparsevlm_scores(tokens: VisualTokens, rated_by: list[int], version: int = 1) -> np.ndarray:
    rows = f64(tokens.rows)[:, rated_by]
    heads = range(len(rows)) if version == 1 else top(rows.sum(axis=(1, 2)), 14)
    return np.mean([rows[h, t] for h in heads for t in range(len(rated_by))], axis=0)


def sparsevlm(
    tokens: VisualTokens, count: int, rated_by: list[int], version: int = 1, recycle: float = 0.3
) -> tuple[list[int], dict[int, list[int]]]:
    """What is kept, and for each cluster its centre (which is kept) and all its members."""
    scores, number = sparsevlm_scores(tokens, rated_by, version), len(tokens)
    dropped = number - count
    size = int(recycle * dropped) + 1
    clusters = min(size, int(size / 10) + 1)
    if not recycle:
        clusters = 0
    elif count - clusters < 1:
        clusters = count - 1
    kept = top(scores, count - clusters)
    if not clusters:
        return sorted(kept), {}
    rest = [i for i in range(number) if i not in kept]
    candidates = sorted(top(scores, size, rest))
    found = density_peaks(f64(tokens.hidden)[candidates], clusters)
    groups = {candidates[c]: [candidates[i] for i in members] for c, members in found.items()}
    return sorted([*kept, *groups]), groups


def density_peaks(points: np.ndarray, clusters: int, nearest: int = 5) -> dict[int, list[int]]:
    """Of each centre, the points that join it. Densities are compared by their logarithms: exp(-1000) is not 0."""
    number = len(points)
    gap = [[math.dist(a, b) for b in points] for a in points]
    density = []
    for i in range(number):
        others = sorted(gap[i][j] for j in range(number) if j != i)[:nearest]
        density.append(-sum(d**2 for d in others) / max(1, len(others)))
    peak = []
    for i in range(number):
        higher = [j for j in range(number) if (-density[j], j) < (-density[i], i)]
        apart = min(gap[i][j] for j in higher) if higher else max(gap[i])
        peak.append(density[i] + math.log(apart) if apart > 0 else -math.inf)
    centres = sorted(top(peak, clusters))
    groups: dict[int, list[int]] = {c: [] for c in centres}
    for i in range(number):
        groups[min(centres, key=lambda c: (gap[i][c], c))].append(i)
    return groups


def sparsevlm_states(tokens: VisualTokens, kept: list[int], groups: dict[int, list[int]]) -> np.ndarray:
    hidden = f64(tokens.hidden)
    return np.array([hidden[groups[i]].mean(axis=0) if i in groups else hidden[i] for i in kept])


# Counts


def stages(layers: Sequence[int], num_layers: int) -> list[int]:
    """Layers of a decoder of 32, for one of another depth."""
    result: list[int] = []
    for layer in layers:
        scaled = math.floor(Fraction(layer * num_layers, 32) + Fraction(1, 2))
        result.append(max(result[-1] + 1 if result else 1, scaled))
    return result


TABLES = {
    1: {64: (66, 30, 17), 128: (303, 110, 36), 192: (300, 200, 110)},
    2: {64: (66, 34, 20), 128: (238, 108, 60), 192: (300, 200, 118)},
}


def sparsevlm_counts(target: int, size: int, version: int = 1) -> list[int]:
    """Straight lines between the published budgets of 576 tokens, exactly; beyond them, in proportion."""
    table, budget = TABLES[version], Fraction(target * 576, size)
    result: list[int] = []
    for stage in range(3):
        values = {b: Fraction(row[stage]) for b, row in table.items()}
        if budget <= 64:
            count = values[64] * budget / 64
        elif budget >= 192:
            count = values[192] * budget / 192
        else:
            low = 64 if budget < 128 else 128
            count = values[low] + (values[low + 64] - values[low]) * (budget - low) / 64
        whole = max(1, math.floor(count * size / 576))
        result.append(min(whole, size, *result))
    return result


def geometric_counts(target: int, size: int, stages: Sequence[int], num_layers: int) -> list[int] | None:
    """size * q^i with the q by which the mean over layers is target; None where even q = 0 is too much."""
    ends = [*stages, num_layers]
    spans = [ends[i + 1] - ends[i] for i in range(len(stages))]
    share = target / size
    if stages[0] * size > target * num_layers:
        return None
    roots = np.roots([*reversed(spans), stages[0] - share * num_layers])
    ratio = next(float(r.real) for r in roots if abs(r.imag) < 1e-9 and -1e-12 < r.real <= 1 + 1e-9)
    return [max(1, math.floor(size * ratio ** (i + 1) + 1e-9)) for i in range(len(stages))]


def tops_counts(target: int, size: int, stages: Sequence[int], num_layers: int) -> list[int]:
    """2T, T and T//4, none above the size, of the T, rounded down, by which their mean over layers is what was asked.

    That mean rises with T in straight lines, which bend where 2T, T and T/4 reach the size.
    """
    first, second = stages
    spans, factors = (first, second - first, num_layers - second), (Fraction(2), Fraction(1), Fraction(1, 4))

    def total(number: Fraction) -> Fraction:
        kept = (span * min(size, factor * number) for span, factor in zip(spans, factors, strict=True))
        return sum(kept, Fraction(0))

    low = Fraction(0)
    for high in (Fraction(size, 2), Fraction(size), Fraction(4 * size)):
        if total(high) >= target * num_layers:
            slope = (total(high) - total(low)) / (high - low)
            number = low + (target * num_layers - total(low)) / slope
            break
        low = high
    whole = max(1, math.floor(number))
    return [max(1, min(size, math.floor(factor * whole))) for factor in factors]


def deft_counts(target: int, size: int, margin: str = "0.2") -> list[int]:
    return [target + math.ceil(Fraction(margin) * (size - target)), target]
