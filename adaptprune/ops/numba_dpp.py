"""The determinantal selection with late updates, compiled by numba.

What is left of a token only falls. It is therefore worked out only while it could still be the highest: the kernel's
entries for other pairs are never computed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adaptprune.ops.greedy import SPANNED, TIE
from adaptprune.ops.inputs import finite
from adaptprune.ops.numba_tools import compiled, dot, inverse, norms, wide_array

TRIES = 16


@compiled()
def _update(i, floor, count, picks, rows, dense, scale, whole, left, seen, columns):  # type: ignore[no-untyped-def]
    """Take the kept tokens' span out of token i, as far as is needed to know that it falls below `floor`."""
    for p in range(seen[i], count):
        j = picks[p]
        entry = (np.float64(rows[i, j]) if dense else dot(rows[i], rows[j])) * (scale[i] * scale[j])
        entry = (entry - dot(columns[i, :p], columns[j, :p])) / columns[j, p]
        columns[i, p] = entry
        left[i] -= entry * entry
        seen[i] = p + 1
        if left[i] <= SPANNED * whole[i]:
            left[i] = -np.inf
            return
        if left[i] < floor:
            return


@compiled()
def _greedy(rows, dense, scale, whole, num_keep):  # type: ignore[no-untyped-def]
    """Picks of one row, in the order in which they were made. columns[j, p] of pick p is d_j."""
    size = whole.shape[0]
    columns = np.empty((size, num_keep))
    seen = np.zeros(size, np.int64)
    picks = np.empty(num_keep, np.int64)
    taken = np.zeros(size, np.bool_)
    left = np.where(whole > 0.0, whole, -np.inf)
    for count in range(num_keep):
        top = int(np.argmax(left))
        for _ in range(TRIES):  # a good first candidate spares the others much work
            _update(top, -np.inf, count, picks, rows, dense, scale, whole, left, seen, columns)
            other = int(np.argmax(left))
            if left[other] == left[top]:
                break
            top = other
        _update(top, -np.inf, count, picks, rows, dense, scale, whole, left, seen, columns)
        for i in range(size):
            floor = left[top] - TIE * (whole[i] + whole[top])
            if left[i] >= floor and left[i] > -np.inf:
                _update(i, floor, count, picks, rows, dense, scale, whole, left, seen, columns)
                if left[i] > left[top]:
                    top = i
        if left[top] == -np.inf:  # the rank is exhausted
            _fill(picks, count, taken)
            return picks
        for i in range(size):
            if seen[i] == count and left[i] >= left[top] - TIE * (whole[i] + whole[top]):
                top = i
                break
        columns[top, count] = np.sqrt(left[top])
        left[top] = -np.inf
        taken[top] = True
        picks[count] = top
    return picks


@compiled()
def _fill(picks, count, taken):  # type: ignore[no-untyped-def]
    """The remaining tokens, in order."""
    for i in range(taken.shape[0]):
        if count == picks.shape[0]:
            return
        if not taken[i]:
            picks[count] = i
            count += 1


def dpp(rows: Tensor, quality: Tensor, num_keep: int, dense: bool, unit: bool, ridge: float) -> Tensor:
    """See `adaptprune.ops.dpp`; arguments are taken as checked."""
    array, kept = wide_array(rows), []
    for each, q in zip(array, quality.numpy(), strict=True):
        norm = norms(each)
        finite("kernel" if dense else "factors", torch.from_numpy(norm))
        scale = q * inverse(norm) if unit else q
        whole = q * q * each.diagonal() if dense else np.square(scale * norm)
        whole = finite("diagonal entries", torch.from_numpy(whole + ridge)).numpy()
        kept.append(_greedy(each, dense, scale, whole, num_keep))
    return torch.from_numpy(np.stack(kept))
