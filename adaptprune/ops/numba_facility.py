"""Facility location, compiled by numba.

All pairs' similarities are worked out in float32, with what they may be off by: bounds of the gains, summed in float64,
that only fall as more is covered. A token's are renewed only while it could still be the highest. Where the bounds of
several overlap, similarities in float64 decide, of the tokens that are not covered alone. Inputs for which that is
asked too often (many tokens exactly alike) get all similarities in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptprune.ops.greedy import TIE
from adaptprune.ops.inputs import finite
from adaptprune.ops.numba_tools import SUM_FLAGS, compiled, cosine_slack, dot, inverse, norms, unit32, wide_array

TRIES = 16


@compiled(fastmath=SUM_FLAGS)
def _bound(alike, weight, best, slack):  # type: ignore[no-untyped-def]
    """What a token's gain is at most (slack > 0) or at least (slack < 0)."""
    total = 0.0
    for j in range(alike.shape[0]):
        total += weight[j] * max(0.0, np.float64(alike[j]) + slack - best[j])
    return total


@compiled()
def _similarity(i, j, rows, scale, shifted, width):  # type: ignore[no-untyped-def]
    cosine = dot(rows[i], rows[j]) * (scale[i] * scale[j])
    if width > 0.0:
        return np.exp(-((1.0 - cosine) ** 2) / (2.0 * width * width))
    return 0.5 * (1.0 + cosine) if shifted else cosine


@compiled()
def _exact(i, alike, slack, weight, best, rows, scale, shifted, width):  # type: ignore[no-untyped-def]
    """A token's gain in float64, and how many similarities that took."""
    total, work = 0.0, 0
    for j in range(weight.shape[0]):
        if np.float64(alike[i, j]) + slack > best[j] and weight[j] > 0.0:
            total += weight[j] * max(0.0, _similarity(i, j, rows, scale, shifted, width) - best[j])
            work += 1
    return total, work


@compiled()
def _renew(i, count, alike, weight, best, slack, gain_scale, high, seen):  # type: ignore[no-untyped-def]
    if seen[i] < count:
        high[i] = gain_scale[i] * _bound(alike[i], weight, best, slack)
        seen[i] = count


@compiled()
def _leaders(count, alike, weight, best, slack, gain_scale, room, high, seen, gain):  # type: ignore[no-untyped-def]
    """Mark, in `gain`, the tokens that may have the highest gain by its lower bound; the others' is -inf."""
    size = high.shape[0]
    top = int(np.argmax(high))
    for _ in range(TRIES):  # a good first candidate spares the others much work
        _renew(top, count, alike, weight, best, slack, gain_scale, high, seen)
        other = int(np.argmax(high))
        if high[other] == high[top]:
            break
        top = other
    _renew(top, count, alike, weight, best, slack, gain_scale, high, seen)
    least = gain_scale[top] * _bound(alike[top], weight, best, -slack)
    for i in range(size):
        if high[i] >= least - TIE * (room[i] + room[top]):
            _renew(i, count, alike, weight, best, slack, gain_scale, high, seen)
            if high[i] > least:
                low = gain_scale[i] * _bound(alike[i], weight, best, -slack)
                if low > least:
                    least, top = low, i
    for i in range(size):
        gain[i] = -np.inf
        if high[i] >= least - TIE * (room[i] + room[top]):
            gain[i] = high[i]


@compiled()
def _greedy(alike, slack, weight, gain_scale, rows, scale, shifted, width, num_keep, patience):  # type: ignore[no-untyped-def]
    """Picks of one row, in the order in which they were made; none if float64 was asked more often than `patience`."""
    size = weight.shape[0]
    best, seen, picks = np.zeros(size), np.full(size, -1), np.empty(num_keep, np.int64)
    high, gain, room = np.empty(size), np.empty(size), gain_scale * weight.sum()
    for i in range(size):
        high[i] = gain_scale[i] * _bound(alike[i], weight, best, slack)
        seen[i] = 0
    for count in range(num_keep):
        _leaders(count, alike, weight, best, slack, gain_scale, room, high, seen, gain)
        if slack > 0.0 and (gain > -np.inf).sum() > 1:
            for i in range(size):
                if gain[i] > -np.inf:
                    total, work = _exact(i, alike, slack, weight, best, rows, scale, shifted, width)
                    gain[i] = gain_scale[i] * total
                    patience -= work
                    if patience < 0:
                        return picks[:0]
        top = int(np.argmax(gain))
        for i in range(size):
            if gain[i] > -np.inf and gain[i] >= gain[top] - TIE * (room[i] + room[top]):
                top = i
                break
        for j in range(size):
            if np.float64(alike[top, j]) + slack > best[j]:
                value = _similarity(top, j, rows, scale, shifted, width) if slack > 0.0 else np.float64(alike[top, j])
                best[j] = max(best[j], value)
        best[top] = np.inf
        high[top] = -np.inf
        picks[count] = top
    return picks


def _similarities(unit: NDArray[Any], shifted: bool, width: float = 0.0) -> NDArray[Any]:
    alike: NDArray[Any] = unit @ unit.T
    if width:
        alike -= 1
        np.square(alike, out=alike)
        alike *= -0.5 / width**2
        np.exp(alike, out=alike)
        return alike
    if shifted:
        alike *= 0.5
        alike += 0.5
    return alike


def facility_location(
    features: Tensor, weights: Tensor, scale: Tensor, num_keep: int, shifted: bool, width: float
) -> Tensor:
    """See `adaptprune.ops.facility_location`; arguments are taken as checked."""
    array, kept = wide_array(features), []
    for rows, weight, gain_scale in zip(array, weights.numpy(), scale.numpy(), strict=True):
        norm = norms(rows)
        finite("features", torch.from_numpy(norm))
        slack = cosine_slack(rows.shape[1])
        if width:  # the kernel's steepest slope is exp(-1/2) / width; float32's own powers are off, too
            slack = slack * max(1.0, 0.61 / width) + 4e-7 * max(1.0, 1 / width**2)
        rest = (weight, gain_scale, rows, inverse(norm), shifted, width, num_keep)
        picks = _greedy(_similarities(unit32(rows, norm), shifted, width), slack, *rest, 400 * len(rows))
        if not len(picks):
            picks = _greedy(_similarities(_unit64(rows, norm), shifted, width), 0.0, *rest, 0)
        kept.append(picks)
    return torch.from_numpy(np.stack(kept))


def _unit64(rows: NDArray[np.float32], norm: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows * inverse(norm)[:, None]
    return unit


@compiled()
def _balance(cosine, relevance, num_keep, diversity, coverage):  # type: ignore[no-untyped-def]
    """Picks of one row, in the order in which they were made; coverage is kept up to date column by column."""
    size = relevance.shape[0]
    picks, free = np.empty(num_keep, np.int64), np.ones(size, np.bool_)
    near, cover, value = np.full(size, -np.inf), np.zeros(size), relevance.copy()
    room = relevance.copy()
    for count in range(num_keep):
        top = int(np.argmax(value))
        for i in range(size):
            if free[i] and value[i] >= value[top] - TIE * (room[i] + room[top]):
                top = i
                break
        picks[count] = top
        _cover(top, cosine, near, free, cover)
        free[top] = False
        left = size - count - 1
        if left == 0:
            break
        apart, covered = 0.0, 0.0
        for i in range(size):
            if free[i]:
                apart += (1.0 - near[i]) / left
                covered += cover[i] / left
        for i in range(size):
            value[i], room[i] = -np.inf, relevance[i] + diversity + coverage
            if free[i]:
                value[i] = relevance[i]
                if apart > TIE:
                    value[i] += diversity * (1.0 - near[i]) / apart
                if covered > TIE * size:
                    value[i] += coverage * cover[i] / covered
    return picks


@compiled()
def _cover(top, cosine, near, free, cover):  # type: ignore[no-untyped-def]
    """Token `top` is kept: columns that it is nearer to than any before offer less, its own nothing."""
    size = near.shape[0]
    for j in range(size):
        before, after = near[j], max(near[j], cosine[top, j])
        if not free[j] or (after == before and j != top):
            continue
        near[j] = after
        for i in range(size):  # cosine is symmetric: row j is read in order
            now = 0.0 if j == top else max(0.0, cosine[j, i] - after)
            then = 0.0 if before == -np.inf else max(0.0, cosine[j, i] - before)
            cover[i] += now - then


def balanced(features: Tensor, relevance: Tensor, num_keep: int, diversity: float, coverage: float) -> Tensor:
    """See `adaptprune.ops.balanced`; arguments are taken as checked."""
    array, kept = wide_array(features), []
    for rows, r in zip(array, relevance.numpy(), strict=True):
        norm = norms(rows)
        finite("features", torch.from_numpy(norm))
        mean = r.mean()
        each = r / mean if mean > 0 else np.zeros_like(r)
        kept.append(_balance(_similarities(_unit64(rows, norm), False), each, num_keep, diversity, coverage))
    return torch.from_numpy(np.stack(kept))
