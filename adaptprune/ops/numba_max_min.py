"""Max-min selection with late updates, compiled by numba.

A token's distance to its nearest kept one only falls. It is therefore worked out only while it could still be the
highest. The token whose nearest neighbour is farthest takes all pairs: these are screened in float32, and float64
decides among those that are as far to within what float32 may be off.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptprune.ops.greedy import TIE
from adaptprune.ops.inputs import finite
from adaptprune.ops.numba_tools import compiled, cosine_slack, dot, inverse, norms, unit32, wide_array

TRIES = 16
#: How many neighbours in the sequence are looked at first (they are often alike), and how many tokens at once then.
NEARBY, BLOCK = 6, 128


@compiled()
def _update(i, floor, count, picks, rows, scale, quality, near, value, seen):  # type: ignore[no-untyped-def]
    """Bring token i up to date, as far as is needed to know that it falls below `floor`."""
    for p in range(seen[i], count):
        j = picks[p]
        cosine = dot(rows[i], rows[j]) * (scale[i] * scale[j])
        seen[i] = p + 1
        if cosine > near[i]:
            near[i] = cosine
            value[i] = quality[i] * (1.0 - cosine)
            if value[i] < floor:
                return


@compiled()
def _greedy(rows, scale, quality, first, num_keep):  # type: ignore[no-untyped-def]
    """Picks of one row, in the order in which they were made."""
    size = rows.shape[0]
    seen = np.zeros(size, np.int64)
    near = np.full(size, -np.inf)
    value = np.full(size, np.inf)
    picks = np.empty(num_keep, np.int64)
    picks[0] = first
    value[first] = -np.inf
    seen[first] = num_keep
    for count in range(1, num_keep):
        top = int(np.argmax(value))
        for _ in range(TRIES):  # a good first candidate spares the others much work
            _update(top, -np.inf, count, picks, rows, scale, quality, near, value, seen)
            other = int(np.argmax(value))
            if value[other] == value[top]:
                break
            top = other
        _update(top, -np.inf, count, picks, rows, scale, quality, near, value, seen)
        for i in range(size):
            floor = value[top] - TIE * (quality[i] + quality[top])
            if value[i] >= floor:
                _update(i, floor, count, picks, rows, scale, quality, near, value, seen)
                if value[i] > value[top]:
                    top = i
        for i in range(size):
            if seen[i] == count and value[i] >= value[top] - TIE * (quality[i] + quality[top]):
                top = i
                break
        value[top] = -np.inf
        seen[top] = num_keep
        picks[count] = top
    return picks


@compiled()
def _nearby(unit, reach):  # type: ignore[no-untyped-def]
    """The highest cosine of each token to those around it in the sequence."""
    size = unit.shape[0]
    near = np.full(size, -np.inf, np.float32)
    for i in range(size):
        for j in range(i + 1, min(size, i + 1 + reach)):
            cosine = np.float32(dot(unit[i], unit[j]))
            near[i], near[j] = max(near[i], cosine), max(near[j], cosine)
    return near


@compiled()
def _farthest(candidates, alike, near, slack, rows, scale):  # type: ignore[no-untyped-def]
    """The candidate whose nearest neighbour is farthest, and how near that is, in float64."""
    size = rows.shape[0]
    exact = np.empty(candidates.shape[0])
    for c in range(candidates.shape[0]):
        i, best = candidates[c], -np.inf
        for j in range(size):
            if j != i and alike[c, j] >= near[c] - 2.0 * slack:
                best = max(best, dot(rows[i], rows[j]) * (scale[i] * scale[j]))
        exact[c] = best
    least = exact.min()
    for c in range(candidates.shape[0]):
        if exact[c] <= least + 2.0 * TIE:
            return candidates[c]
    return candidates[0]


def _screen(unit: NDArray[np.float32], slack: float) -> NDArray[np.int64]:
    """Tokens, ascending, whose nearest neighbour may be the farthest of all."""
    size = len(unit)
    lower = _nearby(unit, NEARBY)  # of each token, what its nearest neighbour is at least
    done = np.zeros(size, np.bool_)
    limit = np.inf
    while True:
        order = np.argsort(lower + np.where(done, 4.0, 0.0), kind="stable")[:BLOCK]
        block = order[(lower[order] <= limit + 2 * slack) & ~done[order]]
        if not len(block):
            break
        alike = unit[block] @ unit.T
        alike[np.arange(len(block)), block] = -2.0
        np.maximum(lower, alike.max(axis=0), out=lower)
        lower[block] = alike.max(axis=1)
        done[block] = True
        limit = min(limit, float(lower[block].min()))
    return np.flatnonzero(done & (lower <= limit + 2 * slack))


def _seed(rows: NDArray[np.float32], scale: NDArray[np.float64], norm: NDArray[np.float64]) -> int:
    """The token whose nearest neighbour is farthest."""
    if len(rows) == 1:
        return 0
    unit, slack = unit32(rows, norm), cosine_slack(rows.shape[1])
    candidates = _screen(unit, slack)
    alike = unit[candidates] @ unit.T
    alike[np.arange(len(candidates)), candidates] = -2.0
    return int(_farthest(candidates, alike, alike.max(axis=1), slack, rows, scale))


def max_min(features: Tensor, quality: Tensor, num_keep: int, seed: str) -> Tensor:
    """See `adaptprune.ops.max_min`; arguments are taken as checked."""
    array, kept = wide_array(features), []
    for rows, q in zip(array, quality.numpy(), strict=True):
        norm = norms(rows)
        finite("features", torch.from_numpy(norm))
        scale = inverse(norm)
        best = q.max()
        first = _seed(rows, scale, norm) if seed == "farthest" else int((q >= best - TIE * (q + best)).argmax())
        kept.append(_greedy(rows, scale, q, first, num_keep))
    return torch.from_numpy(np.stack(kept))
