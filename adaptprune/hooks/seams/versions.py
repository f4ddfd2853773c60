"""Which releases of transformers the project is tested with, and what is said on any other."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from adaptprune._version import __version__
from adaptprune.errors import AdaptPruneError

#: The window of tested releases: its oldest one, and its newest minor. pyproject.toml says the same (a test compares).
OLDEST = "5.16.1"
NEWEST = "5.24"


@cache
def installed() -> str:
    """The installed release of transformers; "none" without one."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "none"


def window() -> str:
    """The tested releases, for people."""
    return f"{OLDEST} to {NEWEST}"


def requirement(oldest: str | None = None) -> str:
    """The tested releases (from `oldest` on), for pip."""
    major, minor = NEWEST.split(".")
    return f"transformers>={oldest or OLDEST},<{major}.{int(minor) + 1}"


def is_tested(release: str | None = None) -> bool:
    """Whether a release (the installed one) lies in the window."""
    try:
        parts = tuple(int(part) for part in (release or installed()).split(".")[:3])
    except ValueError:  # a development version
        return False
    low, high = (tuple(int(part) for part in text.split(".")) for text in (OLDEST, NEWEST))
    return low <= parts and parts[:2] <= high


def reaches(release: str) -> bool:
    """Whether the installed release is this one or a newer one."""
    numbers = [tuple(map(int, re.findall(r"(?:^|\.)(\d+)", text)[:3])) for text in (installed(), release)]
    return numbers[0] >= numbers[1]


def judgement(release: str | None = None) -> str:
    """What is known of a release (the installed one), for people."""
    release = release or installed()
    if is_tested(release):
        return f"in the tested window {window()}"
    numbers = tuple(int(digits) for digits in re.findall(r"(?:^|\.)(\d+)", release)[:3])
    low, high = (tuple(int(part) for part in text.split(".")) for text in (OLDEST, NEWEST))
    if not numbers:
        return "not installed"
    if numbers < low:
        return f"not tested: older than {OLDEST}"
    return f"not tested: newer than {NEWEST}" if numbers[:2] > high else "not tested: no final release"


def misfit(seam: str, detail: str) -> AdaptPruneError:
    """The error for a seam that the installed transformers, or the model in hand, does not have."""
    known = "is one of them, so this model is special" if is_tested() else "is not one of them"
    return AdaptPruneError(
        f"{seam}: {detail}. adaptprune {__version__} is tested with transformers {window()}; the installed "
        f"{installed()} {known}. Try `pip install '{requirement()}'`; `adaptprune doctor` shows what works here."
    )
