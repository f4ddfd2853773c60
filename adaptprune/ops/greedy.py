"""Greedy selections that several rules share: checks of their arguments, then one backend.

All keep exactly `num_keep` tokens of each row of a batch, take no gradients, and count values that differ by no more
than rounding (`TIE`) as equal: the lower index then comes first. "reference" is the readable specification, in float64;
"numba" (what "auto" means) returns what it returns, works on the CPU, and copies tensors of other devices there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adaptprune.checks import finite_not_negative, not_negative, one_of, positive, whole
from adaptprune.errors import AdaptPruneError
from adaptprune.ops.inputs import batched, into_range, module_of, per_token

#: Values count as equal if they differ by no more than this fraction of the largest that they could have been.
TIE = 1e-12
#: A token whose remaining part is no more than this fraction of itself is spanned by the kept ones.
SPANNED = 1e-10
SEEDS = {
    "farthest": "the token whose nearest neighbour is farthest",
    "quality": "the token of the highest quality",
}


def dpp(
    num_keep: int,
    *,
    factors: Tensor | None = None,
    kernel: Tensor | None = None,
    quality: Tensor | None = None,
    unit: bool = False,
    ridge: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Greedy MAP of a determinantal point process, by an incremental Cholesky factorisation.

    The kernel is ``L = diag(quality) K diag(quality) + ridge * I``, where K is `kernel` or ``factors factors^T``. Each
    round keeps ``argmax d_i^2``, d_i^2 being ``L_ii`` at first and what is left of it once the kept tokens' span is
    taken out: the growth of ``log det L`` over the kept set.

    Where the kernel's rank is exhausted (d_i^2 at most 1e-10 of L_ii, zeros on the diagonal among them), no token adds
    to the determinant: what is missing is filled with the remaining tokens in the order of their indices.

    Parameters
    ----------
    num_keep : int
        1 to N.
    factors : Tensor, (N, D) or (B, N, D), floating
        No N x N matrix is made of them. Give these or `kernel`.
    kernel : Tensor, (N, N) or (B, N, N), floating
        Symmetric and positive semidefinite; that is taken on trust.
    quality : Tensor, (N,) or (B, N), floating
        Finite, 0 or more; 1 by default.
    unit : bool
        Whether `factors` are divided by their norms first, so that K holds cosines; that of a zero vector is 0.
    ridge : float
        Finite, 0 or more.
    backend : {"auto", "reference", "numba"}

    Returns
    -------
    Tensor, (num_keep,) or (B, num_keep), int64
        Ascending, without duplicates, on the device of what was handed.

    Raises
    ------
    AdaptPruneError
        A ValueError that names the argument, its value and what is allowed.
    """
    if (factors is None) == (kernel is None):
        raise AdaptPruneError("factors and kernel are two ways to hand a kernel: give one of them.")
    name, given = ("factors", factors) if factors is not None else ("kernel", kernel)
    assert given is not None
    rows, single = batched(name, given, square=kernel is not None)
    if unit and kernel is not None:
        raise AdaptPruneError("unit=True is not allowed with kernel: it divides factors by their norms.")
    whole("num_keep", num_keep, 1, rows.shape[1])
    finite_not_negative("ridge", ridge)
    each = per_token("quality", quality, given)
    run = module_of(backend, "greedy_reference", "numba_dpp")
    kept = run.dpp(into_range(rows) if unit else rows, each, num_keep, kernel is not None, unit, float(ridge))
    return _given_back(kept, given, single)


def max_min(
    features: Tensor,
    num_keep: int,
    *,
    quality: Tensor | None = None,
    seed: str = "farthest",
    backend: str = "auto",
) -> Tensor:
    """Keep, one by one, the token that is farthest from its nearest kept one: ``argmax q_i * min_s (1 - cos_is)``.

    Parameters
    ----------
    features : Tensor, (N, D) or (B, N, D), floating
        Only directions matter; the cosine with a zero vector is 0.
    num_keep : int
        1 to N.
    quality : Tensor, (N,) or (B, N), floating
        q: finite, 0 or more; 1 by default.
    seed : {"farthest", "quality"}
        The first token: the one whose nearest neighbour is farthest (`quality` does not count), or that of the highest
        quality.
    backend : {"auto", "reference", "numba"}

    Returns
    -------
    Tensor, (num_keep,) or (B, num_keep), int64
        Ascending, without duplicates, on the device of `features`.

    Raises
    ------
    AdaptPruneError
        A ValueError that names the argument, its value and what is allowed.
    """
    rows, single = batched("features", features)
    whole("num_keep", num_keep, 1, rows.shape[1])
    one_of("seed", seed, SEEDS)
    each = per_token("quality", quality, features)
    run = module_of(backend, "greedy_reference", "numba_max_min")
    return _given_back(run.max_min(into_range(rows), each, num_keep, seed), features, single)


def facility_location(
    features: Tensor,
    num_keep: int,
    *,
    weights: Tensor | None = None,
    relevance: Tensor | None = None,
    alpha: float = 1.0,
    shifted: bool = False,
    width: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Keep, one by one, what covers best what is not covered: ``argmax r_i^alpha sum_j w_j max(0, S_ij - b_j)``.

    b_j is the highest similarity of token j to a kept one, 0 at first, so that negative similarities never count. Kept
    tokens need no cover.

    Parameters
    ----------
    features : Tensor, (N, D) or (B, N, D), floating
        Only directions matter; the cosine with a zero vector is 0.
    num_keep : int
        1 to N.
    weights, relevance : Tensor, (N,) or (B, N), floating
        w and r: finite, 0 or more; 1 by default.
    alpha : float
        Finite, 0 or more; ``0^0`` is 1.
    shifted : bool
        Whether S is ``(1 + cos) / 2`` rather than cos.
    width : float
        If not 0, S is ``exp(-(1 - cos)^2 / (2 width^2))``.
    backend : {"auto", "reference", "numba"}

    Returns
    -------
    Tensor, (num_keep,) or (B, num_keep), int64
        Ascending, without duplicates, on the device of `features`.

    Raises
    ------
    AdaptPruneError
        A ValueError that names the argument, its value and what is allowed.
    """
    rows, single = batched("features", features)
    whole("num_keep", num_keep, 1, rows.shape[1])
    not_negative("alpha", alpha)
    if width:
        positive("width", width)
    weight = per_token("weights", weights, features)
    scale = per_token("relevance", relevance, features) ** alpha
    if not bool(torch.isfinite(scale).all()):
        raise AdaptPruneError(f"alpha={alpha} is not allowed: a relevance to this power is infinite.")
    run = module_of(backend, "greedy_reference", "numba_facility")
    return _given_back(
        run.facility_location(into_range(rows), weight, scale, num_keep, shifted, float(width)), features, single
    )


def balanced(
    features: Tensor,
    num_keep: int,
    *,
    relevance: Tensor,
    diversity: float = 0.5,
    coverage: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Keep, one by one, the highest sum of relevance, diversity and coverage: ``r_i + diversity d_i + coverage c_i``.

    d_i is ``1 - max_s cos_is`` over the kept tokens s, and c_i ``sum_j max(0, cos_ij - max_s cos_js)`` over the tokens
    j that are not kept (facility location). d and c are divided by their means over the tokens that are not kept, r by
    its mean over all; a mean of 0 leaves zeros. The first token is that of the highest relevance.

    Parameters
    ----------
    features : Tensor, (N, D) or (B, N, D), floating
        Only directions matter; the cosine with a zero vector is 0.
    num_keep : int
        1 to N.
    relevance : Tensor, (N,) or (B, N), floating
        Finite, 0 or more.
    diversity, coverage : float
        Finite, 0 or more.
    backend : {"auto", "reference", "numba"}

    Returns
    -------
    Tensor, (num_keep,) or (B, num_keep), int64
        Ascending, without duplicates, on the device of `features`.

    Raises
    ------
    AdaptPruneError
        A ValueError that names the argument, its value and what is allowed.
    """
    rows, single = batched("features", features)
    whole("num_keep", num_keep, 1, rows.shape[1])
    finite_not_negative("diversity", diversity)
    finite_not_negative("coverage", coverage)
    each = per_token("relevance", relevance, features)
    run = module_of(backend, "greedy_reference", "numba_facility")
    kept = run.balanced(into_range(rows), each, num_keep, float(diversity), float(coverage))
    return _given_back(kept, features, single)


def _given_back(kept: Tensor, given: Tensor, single: bool) -> Tensor:
    """Ascending, and where and as the caller handed its tensors: (M,) of a single one."""
    kept = kept.sort(dim=1).values.to(given.device)
    return kept[0] if single else kept
