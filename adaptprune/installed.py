"""Which packages are installed, in which versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from adaptprune._version import __version__


def version_of(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """What a result depends on, for the record."""
    return {"adaptprune": __version__, **{name: version_of(name) or "" for name in ("torch", "transformers", "numba")}}
