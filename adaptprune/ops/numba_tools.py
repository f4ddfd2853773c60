"""What the compiled kernels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """numba.njit that keeps what it compiled, if there is a place where it may."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside this file nor in the user's home
            return numba.njit(**options)(function)

    return decorate


#: Reordering the sum of a dot product lets it use vector registers; nothing else may be reordered.
SUM_FLAGS = {"reassoc", "contract"}


@compiled(fastmath=SUM_FLAGS)
def dot(a, b):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(a.shape[0]):
        total += np.float64(a[k]) * np.float64(b[k])
    return total


@compiled()
def norms(rows):  # type: ignore[no-untyped-def]
    norm = np.empty(rows.shape[0])
    for i in range(rows.shape[0]):
        norm[i] = np.sqrt(dot(rows[i], rows[i]))
    return norm


def wide_array(values: Tensor) -> NDArray[np.float32] | NDArray[np.float64]:
    """A contiguous array, not copied if it is one; half precision becomes float32, which holds it exactly."""
    wide = values.dtype if values.dtype == torch.float64 else torch.float32
    array: NDArray[np.float32] = values.detach().to("cpu", wide).contiguous().numpy()
    return array


def inverse(norm: NDArray[np.float64]) -> NDArray[np.float64]:
    """One over each; 0 of 0."""
    return np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)


def unit32(rows: NDArray[np.float32], norm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of length 1, in float32; zeros stay zeros."""
    scaled: NDArray[np.float32] = rows * inverse(norm)[:, None].astype(rows.dtype)
    return scaled.astype(np.float32, copy=False)


def cosine_slack(width: int) -> float:
    """What a float32 cosine of `unit32` rows is off by at most.

    Rounding errors of a sum of n terms add up like sqrt(n); this allows several times that, and at least what rounding
    the rows themselves costs.
    """
    return 4.0 * 2.0**-24 * (2.0 + math.sqrt(width))
