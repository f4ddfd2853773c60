"""Checks that kernels share: each error names the argument, its value and what is allowed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from adaptprune.checks import one_of
from adaptprune.errors import AdaptPruneError

#: What a kernel can run on, besides "auto", which is the fastest.
BACKENDS = ("reference", "numba")


def into_range(rows: Tensor) -> Tensor:
    """Scale each float64 row by a power of two (exactly), so that its squared norm neither overflows nor vanishes.

    Narrower types cannot get there: they are upcast.
    """
    if rows.dtype != torch.float64 or rows.shape[-1] == 0:
        return rows
    exponent = torch.frexp(rows.detach().abs().amax(dim=-1, keepdim=True)).exponent
    return torch.ldexp(rows, -exponent)


def module_of(backend: str, reference: str, numba: str) -> Any:
    """The module of this room that runs, imported on first use: numba takes half a second."""
    one_of("backend", backend, ("auto", *BACKENDS))
    return importlib.import_module(f"adaptprune.ops.{reference if backend == 'reference' else numba}")


def batched(name: str, rows: Tensor, square: bool = False) -> tuple[Tensor, bool]:
    """(B, N, D) of (B, N, D) or (N, D), not empty and floating, and whether it was a single one."""
    shape = tuple(rows.shape)
    if rows.ndim not in (2, 3) or 0 in shape[:-1] or (square and shape[-1] != shape[-2]):
        wanted = "(N, N) or (B, N, N)" if square else "(N, D) or (B, N, D)"
        raise AdaptPruneError(f"{name} has the shape {shape}: it has to be {wanted}, not empty.")
    if not rows.is_floating_point():
        raise AdaptPruneError(f"{name} is {rows.dtype}: it has to be floating.")
    return (rows.detach()[None], True) if rows.ndim == 2 else (rows.detach(), False)


def per_token(name: str, values: Tensor | None, rows: Tensor) -> Tensor:
    """(B, N) float64 on the CPU, finite and 0 or more; ones if there are none. `rows` is what was handed beside it."""
    lead = rows.shape[:-1]
    if values is None:
        return torch.ones(lead, dtype=torch.float64).reshape(-1, lead[-1])
    if tuple(values.shape) != tuple(lead):
        raise AdaptPruneError(f"{name} has the shape {tuple(values.shape)}: it has to be {tuple(lead)}, one per token.")
    if not values.is_floating_point():
        raise AdaptPruneError(f"{name} is {values.dtype}: it has to be floating.")
    wide = values.detach().to("cpu", torch.float64)
    low, high = torch.aminmax(wide)
    if not (low >= 0 and torch.isfinite(high)):  # also false for NaN
        raise AdaptPruneError(f"{name} ranges from {float(low)} to {float(high)}: it has to be finite and 0 or more.")
    return wide.reshape(-1, lead[-1])


def finite(name: str, measures: Tensor) -> Tensor:
    """Squares, norms or the like, one per token, all finite; AdaptPruneError otherwise."""
    if not bool(torch.isfinite(measures).all()):
        token = int((~torch.isfinite(measures)).nonzero()[0][-1])
        raise AdaptPruneError(
            f"{name} of token {token} are not finite: the model overflowed, load it in bfloat16 or float32."
        )
    return measures
