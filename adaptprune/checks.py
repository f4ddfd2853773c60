"""Checks of numbers that several places share; each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from adaptprune.errors import AdaptPruneError
from adaptprune.registry import did_you_mean


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


def finite_not_negative(name: str, value: Any) -> None:
    """0 or a finite number above it."""
    not_negative(name, value)
    if value == math.inf:
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it must be a finite number, 0 or more.")


def fraction(name: str, value: Any) -> None:
    """A number from 0 to 1, both included."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it must be a number from 0 to 1.")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """One of some words; the closest is named."""
    if not isinstance(value, str) or value not in allowed:
        raise AdaptPruneError(f"unknown {name}={value!r}.{did_you_mean(str(value), allowed)}")


def whole(name: str, value: Any, low: int, high: int) -> None:
    """A whole number from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise AdaptPruneError(f"{name}={value!r} is not allowed: it is a whole number from {low} to {high}.")


#: What the types of options are called.
_CALLED = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as it is written for a field; what cannot be told counts as fitting.

    A whole number is a number; True and False are neither.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and _members_fit(value, inner)
    if origin in (list, set, frozenset, Sequence):
        return isinstance(value, origin) and not isinstance(value, str) and all(fits(each, inner[0]) for each in value)
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None:
        return value is None
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def _members_fit(value: tuple[Any, ...], inner: tuple[Any, ...]) -> bool:
    if len(inner) == 2 and inner[1] is Ellipsis:
        return all(fits(each, inner[0]) for each in value)
    return len(value) == len(inner) and all(map(fits, value, inner))


def called(hint: Any) -> str:
    """A type in words, for an error message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(called(each) for each in inner)
    if origin is Literal:
        return "one of " + ", ".join(repr(each) for each in inner)
    if origin is tuple and inner:
        if inner[-1] is Ellipsis:
            return f"a tuple of which each is {called(inner[0])}"
        return f"a tuple of {len(inner)}: " + ", ".join(called(each) for each in inner)
    if hint is None:
        return "None"
    return _CALLED.get(hint) or str(getattr(hint, "__name__", hint))
