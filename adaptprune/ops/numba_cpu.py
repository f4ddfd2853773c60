"""The exact adaptive NMS as a lazy greedy on a heap, compiled by numba.

Scores only fall. A token's decays are therefore worked out only when its last known score tops the heap: if it stays on
top after them it is the maximum, else it sinks. Keys are compared for those pairs alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adaptprune.ops.numba_tools import compiled, dot, norms, wide_array
from adaptprune.ops.reference import check_norms


@compiled()
def _above(score, i, j):  # type: ignore[no-untyped-def]
    """Whether token i comes before token j: higher score, then lower index."""
    return score[i] > score[j] or (score[i] == score[j] and i < j)


@compiled()
def _sink(heap, size, place, score):  # type: ignore[no-untyped-def]
    """Restore the heap below `place`, whose token's score may have fallen."""
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _above(score, heap[child + 1], heap[child]):
            child += 1
        if not _above(score, heap[child], heap[place]):
            return
        heap[child], heap[place] = heap[place], heap[child]
        place = child


@compiled()
def _factor(i, j, squared, keys, norm, distance_sigma, similarity_sigma):  # type: ignore[no-untyped-def]
    """What keeping token j multiplies the score of token i with."""
    product = norm[i] * norm[j]
    cosine = dot(keys[i], keys[j]) / product if product > 0.0 else 0.0
    near = np.exp(-squared / (2.0 * distance_sigma**2))
    alike = np.exp(-((1.0 - cosine) ** 2) / (2.0 * similarity_sigma**2))
    return 1.0 - near * alike


@compiled()
def _greedy(score, keys, norm, coords, num_keep, distance_limit, distance_sigma, similarity_sigma):  # type: ignore[no-untyped-def]
    """Picks of one row, in the order in which they were made; `score` is overwritten."""
    size = score.shape[0]
    seen = np.zeros(size, np.int64)  # how many picks a token's score accounts for
    picks = np.empty(num_keep, np.int64)
    heap = np.arange(size)
    for place in range(size // 2 - 1, -1, -1):
        _sink(heap, size, place, score)

    count = 0
    while count < num_keep:
        top = heap[0]
        before = score[top]
        for p in range(seen[top], count):
            if score[top] == 0.0:
                break
            j = picks[p]
            if coords[top, 0] == coords[j, 0]:
                rows, columns = coords[top, 1] - coords[j, 1], coords[top, 2] - coords[j, 2]
                squared = float(rows * rows + columns * columns)
                if squared <= distance_limit * distance_limit:
                    score[top] *= _factor(top, j, squared, keys, norm, distance_sigma, similarity_sigma)
        seen[top] = count
        if score[top] == before:  # up to date and still on top of scores that can only fall
            picks[count] = top
            count += 1
            size -= 1
            heap[0] = heap[size]
        _sink(heap, size, 0, score)
    return picks


def adaptive_nms(
    scores: Tensor,
    keys: Tensor,
    coords: Tensor,
    num_keep: int,
    distance_limit: float,
    distance_sigma: float,
    similarity_sigma: float,
) -> Tensor:
    """See `adaptprune.ops.adaptive_nms`; arguments are taken as checked."""
    score = scores.detach().to("cpu", torch.float64, copy=True).numpy()
    key = wide_array(keys)
    place = coords.to("cpu", torch.int64).numpy()
    numbers = (float(distance_limit), float(distance_sigma), float(similarity_sigma))
    kept = []
    for row in range(len(score)):
        norm = check_norms(torch.from_numpy(norms(key[row]))).numpy()
        kept.append(np.sort(_greedy(score[row], key[row], norm, place[row], num_keep, *numbers)))
    return torch.from_numpy(np.stack(kept)).to(scores.device)
