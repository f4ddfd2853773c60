"""Rules before the decoder that only pick, one token at a time in plain Python and float64, from their definitions.

Every function takes arrays of N tokens and says which places are kept, ascending.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from tests.oracles.nms import greedy


def f64(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    """0 with a zero vector."""
    lengths = math.sqrt(math.fsum(x * x for x in u)) * math.sqrt(math.fsum(x * x for x in v))
    return math.fsum(x * y for x, y in zip(u, v, strict=True)) / lengths if lengths else 0.0


def best(places: Iterable[int], score: Sequence[float] | Mapping[int, float] | np.ndarray, count: int) -> list[int]:
    """`count` places of highest score, in that order; of equals the lower."""
    return sorted(places, key=lambda i: (-score[i], i))[:count]


def head_mean(attention: np.ndarray) -> list[float]:
    heads, count = attention.shape
    return [sum(float(attention[h, i]) for h in range(heads)) / heads for i in range(count)]


def shares(total: int, weights: Sequence[float], room: Sequence[int]) -> list[int]:
    """Floor and largest remainders; what finds no room is handed out again by the same rule."""
    got = [0] * len(room)
    while total:
        open_ = [i for i in range(len(room)) if got[i] < room[i]]
        exact = {i: Fraction(float(weights[i])) for i in open_}
        if not sum(exact.values()):
            exact = dict.fromkeys(open_, Fraction(1))
        part = {i: total * exact[i] / sum(exact.values()) for i in open_}
        given = {i: math.floor(part[i]) for i in open_}
        rest = {i: float(part[i] - given[i]) for i in open_}
        for i in best(open_, rest, total - sum(given.values())):
            given[i] += 1
        for i in open_:
            fits = min(given[i], room[i] - got[i])
            got[i] += fits
            total -= fits
    return got


def fastervlm(attention: np.ndarray, keep: int) -> list[int]:
    score = head_mean(f64(attention))
    return sorted(best(range(len(score)), score, keep))


def vispruner(
    attention: np.ndarray, features: np.ndarray, keep: int, important: float = 0.5, *, ascending: bool = False
) -> list[int]:
    """`ascending`: how what is left of the first half is ordered by its score; of equals, the earlier first."""
    score, features = head_mean(f64(attention)), f64(features)
    order = best(range(len(score)), score, len(score))
    first = math.floor(keep * important)
    kept, line = order[:first], order[first:]
    wanted = keep - first
    while len(line) > wanted:
        if wanted == 0:
            line = []
            break
        a, b = line[0::2], line[1::2]
        likeness = [max(cosine(features[i], features[j]) for j in b) for i in a]
        gone = best(range(len(a)), likeness, min(8, len(line) - wanted))
        left = sorted(
            (p for p in range(len(a)) if p not in gone), key=lambda p: (likeness[p] if ascending else -likeness[p], p)
        )
        line = [a[p] for p in left] + b
    return sorted(kept + line)


def hawk_score(affinity: np.ndarray, weights: Sequence[float] | None = None) -> list[float]:
    affinity = f64(affinity)
    heads, texts, count = affinity.shape
    total = [0.0] * count
    for h in range(heads):
        mean = [sum(affinity[h, t, i] for t in range(texts)) / texts for i in range(count)]
        length = math.sqrt(sum(x * x for x in mean))
        for i in range(count):
            total[i] += (1.0 if weights is None else weights[h]) * (mean[i] / length if length else 0.0)
    return total


def hawk(affinity: np.ndarray, keep: int, weights: Sequence[float] | None = None) -> list[int]:
    score = hawk_score(affinity, weights)
    return sorted(best(range(len(score)), score, keep))


def centre(coords: np.ndarray, sigma: float = 1.0) -> list[float]:
    """AdaptPrune's Gaussian on linspace(-side/2, side/2, side) of both axes, rescaled per grid to a maximum of 1."""
    weight = [0.0] * len(coords)
    for grid in {int(g) for g in coords[:, 0]}:
        members = [i for i in range(len(coords)) if coords[i, 0] == grid]
        for i in members:
            exponent = 0.0
            for axis in (1, 2):
                side = 1 + max(int(coords[j, axis]) for j in members)
                place = -side / 2 + (int(coords[i, axis]) * side / (side - 1) if side > 1 else 0.0)
                exponent += place**2 / (2 * (sigma * side / 2) ** 2)
            weight[i] = math.exp(-exponent)
        top = max(weight[i] for i in members)
        for i in members:
            weight[i] /= top
    return weight


def adaptprune_encoder(
    score: Sequence[float],
    features: np.ndarray,
    coords: np.ndarray,
    keep: int,
    *,
    centre_sigma: float = 1.0,
    **options: float,
) -> list[int]:
    corrected = f64(score) * f64(centre(coords, centre_sigma))
    return sorted(greedy(corrected, f64(features), coords, keep, **options))


def nuwa(attention: np.ndarray, coords: np.ndarray, keep: int, region: int = 2, per_region: int = 1) -> list[int]:
    score = head_mean(f64(attention))
    regions: dict[tuple[int, int, int], list[int]] = {}
    for i, (grid, row, column) in enumerate(coords.tolist()):
        regions.setdefault((grid, row // region, column // region), []).append(i)
    quota = [i for members in regions.values() for i in best(members, score, per_region)]
    kept = best(quota, score, keep)
    rest = [i for i in range(len(score)) if i not in kept]
    return sorted(kept + best(rest, score, keep - len(kept)))


# -- HoloV ------------------------------------------------------------------------------------------------------------


def runs(count: int, crops: int) -> list[list[int]]:
    """As even as can be, the longer runs first."""
    short, longer = divmod(count, crops)
    ends = list(itertools.accumulate(short + (c < longer) for c in range(crops)))
    return [list(range(a, b)) for a, b in itertools.pairwise([0, *ends])]


def holov(attention: np.ndarray, features: np.ndarray, keep: int, crops: int | None = 16) -> list[int]:
    seen, features = head_mean(f64(attention)), f64(features)
    count = len(seen)
    score = []
    for i in range(count):
        row = [0.0 if i == j else cosine(features[i], features[j]) for j in range(count)]
        mean = sum(row) / count
        score.append(1e3 * seen[i] + 0.09 * sum((x - mean) ** 2 for x in row) / count)
    wanted = int(1.78 * count / keep) if crops is None else crops
    parts = runs(count, min(max(wanted, 1), count))
    weights = []
    for part in parts:
        mean_seen, mean_score = (sum(values[i] for i in part) / len(part) for values in (seen, score))
        scale = mean_seen / mean_score if mean_score else 0.0
        weights.append(sum(score[i] * scale for i in part) / len(part))
    quotas = shares(keep, weights, [len(part) for part in parts])
    return sorted(i for part, quota in zip(parts, quotas, strict=True) for i in best(part, seen, quota))


# -- HiRED ------------------------------------------------------------------------------------------------------------


def hired(
    attention: np.ndarray,
    early: np.ndarray,
    coords: np.ndarray,
    keep: int,
    *,
    stripes: str = "quadrants",
    marks: float = 0.2,
    tiles: tuple[int, int] | None = None,
) -> list[int]:
    """`tiles`: rows and columns of tiles, where they come apart; None where grid 1 is all of them put together."""
    late, first = head_mean(f64(attention)), head_mean(f64(early))
    places = range(len(late))
    view = [i for i in places if coords[i, 0] == coords[0, 0]]
    others = [i for i in places if i not in view]
    if not others:
        return sorted(best(view, late, keep))
    down, across = tiles or (2, 2)

    def side(grid: int, axis: int) -> int:
        return 1 + max(int(coords[i, axis]) for i in places if coords[i, 0] == grid)

    def part_of(i: int, rows: int, columns: int) -> int:
        """Which part of its grid a cell lies in, the parts in raster order."""
        grid, row, column = (int(x) for x in coords[i])
        return row * rows // side(grid, 1) * columns + column * columns // side(grid, 2)

    parts: list[list[int]] = [[] for _ in range(down * across)]
    numbers = sorted({int(coords[i, 0]) for i in others})
    for i in others:
        parts[part_of(i, down, across) if tiles is None else numbers.index(int(coords[i, 0]))].append(i)
    credit = [0] * len(parts)
    for i in best(view, first, math.floor(marks * len(view))):
        where = part_of(i, down, across) if stripes == "quadrants" else part_of(i, down * across, 1)
        credit[where] += 1
    room = [len(part) for part in parts]
    of_view = max(min(int(keep / 2), len(view)), keep - sum(room))  # what finds no room in the tiles stays in the view
    quotas = shares(keep - of_view, credit if sum(credit) else room, room)
    kept = best(view, late, of_view)
    for part, quota in zip(parts, quotas, strict=True):
        kept += best(part, late, quota)
    return sorted(kept)
