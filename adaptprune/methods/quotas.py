"""Splitting a number of tokens over parts: whole numbers, in proportion, within what each part holds."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(total: int, sizes: Sequence[float]) -> list[int]:
    """Split `total` in proportion to `sizes`, which are not all 0 (largest remainders; ties to the earlier part)."""
    exact = [round(total * size / sum(sizes), 9) for size in sizes]  # equal but for rounding is equal
    shares = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: round(shares[i] - exact[i], 9))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def quotas(total: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Split `total` in proportion to `weights`, no part getting more than its size.

    What a full part would have got is split over the others by the same rule; parts without weight get something only
    when those with one are full, in proportion to their sizes.

    Parameters
    ----------
    total : int
        At most the sum of `sizes`.
    weights : sequence of float
        0 or more.
    """
    shares = [0] * len(sizes)
    while (left := total - sum(shares)) > 0:
        open_ = [part for part, size in enumerate(sizes) if shares[part] < size]
        heavy = [part for part in open_ if weights[part] > 0]
        parts = heavy or open_
        by = [weights[part] if heavy else float(sizes[part]) for part in parts]
        for part, more in zip(parts, apportion(left, by), strict=True):
            shares[part] = min(sizes[part], shares[part] + more)
    return shares
