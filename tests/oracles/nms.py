"""A deliberately naive float64 soft-NMS, written from the definition alone.

It shares no code and no tricks with the package: every pair of tokens gets its factor up front, picks are made one by
one in plain Python. `greedy` is the definition. `explains` judges a kept set when several answers are right: two
scores that are equal on paper may differ in the last bit, and which one wins then depends on the order of additions
inside a dot product. It therefore carries a bound on the rounding error of every score, and lets a token be picked next
when no other token certainly beats it. A score that no rounding has touched has bound 0 and is compared exactly, ties
going to the lower index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

EPS = float(np.finfo(np.float64).eps)
QUANTUM = float(np.nextafter(0.0, 1.0))  # absolute rounding error of a product that lands among the subnormals
MAX_STATES = 20_000  # near-ties can be taken in several orders; the search over them gives up after this many states


@dataclass(frozen=True)
class Factors:
    """What a score is multiplied by: value[i, j] applies to token i when token j is kept."""

    value: np.ndarray
    error: np.ndarray  # bound on |rounded value - true value|; 0 where any sound arithmetic gives exactly 0 or 1


def _cosines(keys: np.ndarray) -> np.ndarray:
    unit = np.zeros_like(keys)
    for i, key in enumerate(keys):
        largest = np.abs(key).max()
        if largest > 0:
            shrunk = key / largest  # squares of very small or very large entries would leave the float64 range
            unit[i] = shrunk / np.sqrt((shrunk * shrunk).sum())
    return unit @ unit.T


def factors(
    keys: np.ndarray,
    coords: np.ndarray,
    *,
    distance_limit: float = 5.0,
    distance_sigma: float = 1.5,
    similarity_sigma: float = 0.05,
) -> Factors:
    keys, coords = np.asarray(keys, dtype=np.float64), np.asarray(coords, dtype=np.int64)
    difference = coords[:, None, 1:] - coords[None, :, 1:]
    squared = (difference * difference).sum(axis=-1).astype(np.float64)
    reaches = (coords[:, None, 0] == coords[None, :, 0]) & (np.sqrt(squared) <= distance_limit)

    gap = 1.0 - _cosines(keys)
    gap_error = 4 * (keys.shape[1] + 4) * EPS  # two sums of D rounded products, and the normalisation
    near = np.exp(-squared / (2 * distance_sigma**2))
    alike = np.exp(-(gap**2) / (2 * similarity_sigma**2))
    weight = np.where(reaches, near * alike, 0.0)

    # The factor 1 - weight cancels where weight is close to 1, so its error is absolute, not relative.
    from_gap = 2 * weight * (np.abs(gap) + gap_error) / similarity_sigma**2 * gap_error
    exponent = squared / (2 * distance_sigma**2) + (np.abs(gap) + gap_error) ** 2 / (2 * similarity_sigma**2)
    surely_one = ~reaches | (weight + from_gap < 2.0**-55)
    surely_zero = reaches & (exponent < 2.0**-56)
    value = np.where(surely_one, 1.0, np.where(surely_zero, 0.0, 1.0 - weight))
    error = np.where(surely_one | surely_zero, 0.0, from_gap + 8 * EPS)
    return Factors(value, error)


def greedy(
    scores: np.ndarray,
    keys: np.ndarray,
    coords: np.ndarray,
    num_keep: int,
    *,
    distance_limit: float = 5.0,
    distance_sigma: float = 1.5,
    similarity_sigma: float = 0.05,
) -> list[int]:
    """The kept tokens of one row, in the order in which they are picked."""
    table = factors(
        keys,
        coords,
        distance_limit=distance_limit,
        distance_sigma=distance_sigma,
        similarity_sigma=similarity_sigma,
    ).value
    left = {i: float(s) for i, s in enumerate(np.asarray(scores, dtype=np.float64))}
    picks: list[int] = []
    for _ in range(num_keep):
        pick = min(left, key=lambda i: (-left[i], i))
        del left[pick]
        picks.append(pick)
        for i in left:
            left[i] *= float(table[i, pick])
    return picks


def _after_pick(score: np.ndarray, error: np.ndarray, table: Factors, pick: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and their error bounds once `pick` is kept."""
    value, slack = table.value[:, pick], table.error[:, pick]
    carried = error * value + (score + error) * slack
    # A product with a factor of exactly 0 or 1 is exact; any other one is rounded, by up to a quantum near zero.
    rounding = np.where((slack > 0) & (score > 0), 2 * EPS * score + 2 * QUANTUM, 0.0)
    return score * value, carried + rounding


def _possible_picks(score: np.ndarray, error: np.ndarray, alive: np.ndarray, tol: float) -> list[int]:
    """Tokens that no other token certainly beats, the likeliest first."""
    margin = np.where(error > 0, error + tol * score, 0.0)
    floor = (score - margin)[alive].max()
    possible = alive & (score + margin >= floor)
    exact = np.flatnonzero(alive & (error == 0))
    if exact.size:
        champion = exact[np.argmax(score[exact])]  # argmax returns the first, i.e. the lowest index
        possible[exact[exact != champion]] = False
    return sorted((int(i) for i in np.flatnonzero(possible)), key=lambda i: (-score[i], i))


def explains(
    kept_set: Iterable[int],
    scores: np.ndarray,
    keys: np.ndarray,
    coords: np.ndarray,
    *,
    distance_limit: float = 5.0,
    distance_sigma: float = 1.5,
    similarity_sigma: float = 0.05,
    tol: float = 1e-9,
) -> str | None:
    """None when some order of picks, each allowed by rounding, keeps exactly this set; otherwise why not."""
    start = np.asarray(scores, dtype=np.float64)
    kept = [int(i) for i in kept_set]
    members = frozenset(kept)
    if len(members) != len(kept) or not all(0 <= i < len(start) for i in kept):
        return f"{kept} has duplicates or indices outside 0..{len(start) - 1}"
    table = factors(
        keys, coords, distance_limit=distance_limit, distance_sigma=distance_sigma, similarity_sigma=similarity_sigma
    )
    return _search(members, start, table, tol)


def _search(members: frozenset[int], start: np.ndarray, table: Factors, tol: float) -> str | None:
    # Depth first. Scores depend on which tokens are kept and not on their order, so a set seen once is settled.
    seen: set[frozenset[int]] = set()
    deepest, reason = -1, ""
    todo: list[tuple[frozenset[int], int | None, np.ndarray, np.ndarray]]
    todo = [(frozenset(), None, start, np.zeros_like(start))]
    while todo:
        done, pick, score, error = todo.pop()
        if pick is not None:
            done = done | {pick}
            score, error = _after_pick(score, error, table, pick)
        if len(done) == len(members):
            return None
        if done in seen:
            continue
        seen.add(done)
        if len(seen) > MAX_STATES:
            return f"no order of picks found within {MAX_STATES} states; {reason}"
        alive = np.ones(len(start), dtype=bool)
        alive[list(done)] = False
        possible = _possible_picks(score, error, alive, tol)
        allowed = [i for i in possible if i in members]
        if not allowed and len(done) > deepest:
            deepest, best = len(done), possible[0]
            waiting = {i: float(score[i]) for i in sorted(members - done)}
            reason = (
                f"after {deepest} picks token {best} (score {float(score[best])}) must be next and is not in the set"
            )
            reason += f"; members still waiting: {waiting}"
        todo.extend((done, i, score, error) for i in reversed(allowed))
    return reason


# Random inputs of the kinds on which pruning code goes wrong


def random_keys(rng: np.random.Generator, kind: str, batch: int, count: int, dim: int) -> np.ndarray:
    keys = rng.normal(size=(batch, count, dim))
    if kind == "equal":
        keys[:] = keys[:, :1]
    elif kind == "zero":
        keys[:] = 0
    elif kind == "some zero":
        keys[rng.random((batch, count)) < 0.4] = 0
    elif kind in ("clustered", "nearly equal"):
        spread = 0.2 if kind == "clustered" else 1e-5
        centres = rng.normal(size=(batch, 3, dim))[np.arange(batch)[:, None], rng.integers(3, size=(batch, count))]
        keys = centres + spread * keys
    elif kind == "one-hot":  # cosines of exactly 0, 1 and -1, whatever the lengths
        keys = np.eye(dim)[rng.integers(dim, size=(batch, count))] * 2.0 ** rng.integers(-3, 4, (batch, count, 1))
        keys *= rng.choice([1, 1, -1], size=(batch, count, 1))
    return keys


def random_scores(rng: np.random.Generator, kind: str, shape: tuple[int, int], smallest_normal: float) -> np.ndarray:
    scores = rng.random(shape)
    if kind == "few values":
        scores = rng.integers(0, 4, shape) / 4
    elif kind == "some zero":
        scores[rng.random(shape) < 0.4] = 0
    elif kind == "all zero":
        scores[:] = 0
    elif kind == "all equal":
        scores[:] = 0.5
    elif kind == "sharp":
        scores = softmax(rng.normal(size=shape) * 30)
    elif kind == "subnormal":
        scores *= smallest_normal
    return scores


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def random_coords(rng: np.random.Generator, kind: str, batch: int, count: int, grids: int) -> np.ndarray:
    width = int(rng.integers(1, 9))
    index = np.arange(count)
    if kind == "ragged":  # row-major grids, the last row of each cut short
        grid = np.sort(rng.integers(grids, size=count))
        place = index - np.searchsorted(grid, grid)
        one = np.stack([grid, place // width, place % width], axis=-1)
        return np.repeat(one[None], batch, axis=0)
    span = 3 if kind == "duplicate" else 12
    places = rng.integers(-span // 2, span // 2 + 1, size=(batch, count, 2))
    return np.concatenate([rng.integers(grids, size=(batch, count, 1)) * 7 - 5, places], axis=-1)
