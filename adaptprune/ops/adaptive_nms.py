"""Dispatch of the adaptive NMS: checks its arguments, then calls one backend.

An explicit backend fails loudly; "auto" takes the fastest that can run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptprune.checks import not_negative, positive, whole
from adaptprune.errors import AdaptPruneError
from adaptprune.ops.inputs import into_range, module_of


def adaptive_nms(
    scores: Tensor,
    keys: Tensor,
    coords: Tensor,
    num_keep: int,
    *,
    distance_limit: float = 5.0,
    distance_sigma: float = 1.5,
    similarity_sigma: float = 0.05,
    backend: str = "auto",
) -> Tensor:
    """Greedy soft non-maximum suppression over visual tokens (AdaptPrune, arXiv 2503.08019).

    `num_keep` rounds: the highest score is kept (ties: the lower index); the score of every token i of the same grid
    within `distance_limit` of it is multiplied by
    ``1 - exp(-d^2 / (2 distance_sigma^2)) * exp(-(1 - cos)^2 / (2 similarity_sigma^2))``.
    All arithmetic is in float64, so the result does not depend on the backend or on the inputs' precision. The cosine
    with a key of zero length is 0.

    Parameters
    ----------
    scores : Tensor, (B, N), floating
        Finite, 0 or more.
    keys : Tensor, (B, N, D), floating
        Finite (anything else is an error); only their directions matter.
    coords : Tensor, (B, N, 3), integer
        Grid, row, column. Tokens of different grids never suppress each other.
    num_keep : int
        1 to N.
    distance_limit, distance_sigma : float
        In grid cells.
    similarity_sigma : float
        In units of cosine similarity.
    backend : {"auto", "reference", "numba"}
        "numba" (what "auto" means) works on the CPU; tensors on other devices are copied there.

    Returns
    -------
    Tensor, (B, num_keep), int64
        Ascending, without duplicates, on the device of `scores`.

    Raises
    ------
    AdaptPruneError
        A ValueError that names the argument, its value and what is allowed.
    """
    run = module_of(backend, "reference", "numba_cpu")
    _check_tensors(scores, keys, coords)
    _check_numbers(scores.shape[1], num_keep, distance_limit, distance_sigma, similarity_sigma)
    kept: Tensor = run.adaptive_nms(
        scores, into_range(keys), coords, num_keep, distance_limit, distance_sigma, similarity_sigma
    )
    return kept


def _check_tensors(scores: Tensor, keys: Tensor, coords: Tensor) -> None:
    shapes = f"scores {tuple(scores.shape)}, keys {tuple(keys.shape)}, coords {tuple(coords.shape)}"
    fits = scores.ndim == 2 and keys.ndim == 3 and coords.shape == (*scores.shape, 3) and keys.shape[:2] == scores.shape
    if not fits or scores.numel() == 0:
        raise AdaptPruneError(
            f"shapes do not fit: {shapes}; they have to be (B, N), (B, N, D) and (B, N, 3), not empty."
        )
    if not scores.is_floating_point() or not keys.is_floating_point() or coords.is_floating_point():
        types = f"{scores.dtype}, {keys.dtype}, {coords.dtype}"
        raise AdaptPruneError(f"scores, keys, coords are {types}: they have to be floating, floating and integer.")
    low, high = torch.aminmax(scores.detach())
    if not (low >= 0 and torch.isfinite(high)):  # also false for NaN
        raise AdaptPruneError(f"scores range from {float(low)} to {float(high)}: they have to be finite and 0 or more.")


def _check_numbers(
    size: int, num_keep: int, distance_limit: float, distance_sigma: float, similarity_sigma: float
) -> None:
    whole("num_keep", num_keep, 1, size)
    positive("distance_sigma", distance_sigma)
    positive("similarity_sigma", similarity_sigma)
    not_negative("distance_limit", distance_limit)
