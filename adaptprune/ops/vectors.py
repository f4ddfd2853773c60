"""Directions of vectors, in float64: what every cosine is made of."""

from __future__ import annotations

from torch import Tensor


def directions(vectors: Tensor) -> Tensor:
    """Vectors scaled to length 1, (..., D) in float64; those of length 0 stay 0, so that their cosine with all is 0."""
    wide = vectors.detach().double()
    length = wide.norm(dim=-1, keepdim=True)
    unit: Tensor = wide / length.masked_fill(length == 0, 1)
    return unit


def cosines(some: Tensor, all_: Tensor) -> Tensor:
    """Cosines of n vectors, (n, D), with N, (N, D): (n, N) in float64; 0 where a vector has length 0."""
    wide = all_.detach().double()
    length = wide.norm(dim=1)
    cosine: Tensor = directions(some) @ wide.T / length.masked_fill(length == 0, 1)
    return cosine
