"""Checks of numbers that several places share; each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from adaptprune.errors import AdaptPruneError


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positive(name: str, value: Any) -> None:
    """A finite number above 0 whose square is one too (it will divide)."""
    if not _is_number(value) or not (value > 0 and 0 < float(value) * float(value) < math.inf):
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it must be a finite number above 0.")


def not_negative(name: str, value: Any) -> None:
    """0 or a number above it; infinity is allowed."""
    if not _is_number(value) or not value >= 0:
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it must be a number, 0 or more.")


def whole(name: str, value: Any, low: int, high: int) -> None:
    """A whole number from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it is a whole number from {low} to {high}.")
