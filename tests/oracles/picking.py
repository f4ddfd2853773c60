"""Picking one token after another by an objective that is worked out anew before every pick.

An objective is a function of the tokens chosen so far. It gives the worth of each token as the next pick, (N,), and a
bound on what rounding may have done to each of these, (N,). `order` is the definition: the best one, of equals the one
of lower index. `explains` judges a kept set where rounding decides between several: some order of picks must exist in
which no token certainly beat the one that was picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

Objective = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]
RELATIVE, ABSOLUTE = 1e-9, 1e-13
MAX_STATES = 5_000


def f64(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of every row of one with every row of the other."""
    table = np.zeros((len(a), len(b)))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            table[i, j] = cosine(one, other)
    return table


def min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def bounded(values: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values, each with the customary bound; what is exactly 0 is taken to be so."""
    values = np.asarray(values, dtype=np.float64)
    return values, np.where(values == 0, 0.0, RELATIVE * np.abs(values) + ABSOLUTE * scale)


def stretched(values: np.ndarray) -> np.ndarray:
    """What rounding of the values does to each of their `min_max`: no bound where they differ by rounding alone."""
    spread = values.max() - values.min()
    noise = 1e-14 * np.abs(values).max()
    return np.full(len(values), noise / spread if spread > 100 * noise else np.inf)


def by_score(scores: np.ndarray) -> Objective:
    """Plain ranking."""
    return lambda chosen: bounded(scores, float(np.abs(scores).max()))


def order(objective: Objective, count: int, candidates: Iterable[int]) -> list[int]:
    """The first `count` picks."""
    left, picks = sorted(candidates), []
    for _ in range(count):
        worth, _ = objective(picks)
        best = min(left, key=lambda i: (-worth[i], i))
        left.remove(best)
        picks.append(best)
    return picks


def possible(worth: np.ndarray, slack: np.ndarray, left: Sequence[int]) -> list[int]:
    """Tokens that none of the others certainly beats, the likeliest first."""
    floor = max(worth[i] - slack[i] for i in left)
    near = [i for i in left if worth[i] + slack[i] >= floor]
    exact = [i for i in near if slack[i] == 0]
    if exact:
        champion = min(exact, key=lambda i: (-worth[i], i))
        near = [i for i in near if slack[i] > 0 or i == champion]
    return sorted(near, key=lambda i: (-worth[i], i))


def explains(kept: Iterable[int], objective: Objective, candidates: Iterable[int], relative: float = 0.0) -> str | None:
    """None if some order of picks, each of them allowed by rounding, keeps exactly these tokens; otherwise why not.

    `relative` is for what was worked out in a coarser type than float64.
    """
    members, everyone = frozenset(kept), sorted(candidates)
    seen: set[tuple[int, ...]] = set()
    reason, deepest = "", -1
    todo: list[list[int]] = [[]]
    while todo:
        picks = todo.pop()
        if len(picks) == len(members):
            return None
        if (state := tuple(sorted(picks))) in seen:
            continue
        seen.add(state)
        if len(seen) > MAX_STATES:
            return f"no order of picks found within {MAX_STATES} states; {reason}"
        left = [i for i in everyone if i not in picks]
        worth, slack = objective(picks)
        slack = slack + relative * np.abs(worth)
        near = possible(worth, slack, left)
        allowed = [i for i in near if i in members]
        if not allowed and len(picks) > deepest:
            deepest = len(picks)
            waiting = {i: float(worth[i]) for i in sorted(members - set(picks))}
            reason = f"after {picks} one of {near} must be next ({worth[near[0]]}); members still waiting: {waiting}"
        todo.extend([*picks, i] for i in reversed(allowed))
    return reason


# Objectives that several rules share


def max_min(distance: np.ndarray, weight: np.ndarray, first: np.ndarray, slack: np.ndarray | float = 0.0) -> Objective:
    """Weight times the distance to the nearest of the chosen; `first` is the worth before there are any.

    `slack` bounds the rounding of both the weights and the first worths.
    """

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        nearest = [min(distance[i, s] for s in chosen) if chosen else 1.0 for i in range(len(distance))]
        values, rounding = bounded(weight * np.array(nearest) if chosen else first)
        return values, rounding + slack

    return worth


def determinant(kernel: np.ndarray, slack: np.ndarray | float = 0.0) -> Objective:
    """By how much a token multiplies the determinant of the chosen ones' part of the kernel.

    `slack` bounds the rounding of what the kernel's rows and columns were multiplied by.
    """

    def log_det(members: list[int]) -> float:
        sign, value = np.linalg.slogdet(kernel[np.ix_(members, members)])
        return float(value) if sign > 0 else -np.inf

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        diagonal = np.diag(kernel).copy()
        if not chosen:
            values, rounding = bounded(diagonal, float(diagonal.max()))
            return values, rounding + slack
        part = kernel[np.ix_(chosen, chosen)]
        scale = np.sqrt(np.diag(part))
        if not (scale > 0).all() or (condition := np.linalg.cond(part / np.outer(scale, scale))) > 1e11:
            return np.zeros(len(kernel)), np.full(len(kernel), np.inf)  # nothing is left that spans anything new
        before, gains = log_det(list(chosen)), np.zeros(len(kernel))
        for i in range(len(kernel)):
            if i not in chosen:
                gains[i] = np.exp(log_det([*chosen, i]) - before)
        return gains, RELATIVE * gains + 1e-15 * len(kernel) * condition * diagonal + slack

    return worth


def coverage(similarity: np.ndarray, weight: np.ndarray) -> Objective:
    """By how much a token raises the weighted sum over all tokens of their similarity to the best chosen one, or 0."""

    def total(members: list[int]) -> float:
        best = np.max([np.zeros(len(weight)), *(similarity[s] for s in members)], axis=0)
        return float(weight @ best)

    def worth(chosen: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        before = total(list(chosen))
        gains = [0.0 if i in chosen else total([*chosen, i]) - before for i in range(len(similarity))]
        values = np.array(gains)
        return values, RELATIVE * np.abs(values) + ABSOLUTE * float(weight.sum())

    return worth
