"""Versions of packages: what the lock says, what is installed, and where they differ."""

from __future__ import annotations

import importlib.metadata
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.lock import CUDA_ONLY, LOCK

#: Not the lock's business: the package itself, and what a fresh virtual environment may bring.
OWN = {"adaptprune", "pip", "setuptools", "wheel"}


def locked(text: str | None = None, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name and version of every package in the lock that applies here, or in an environment of markers' variables."""
    pins: dict[str, str] = {}
    for line in (LOCK.read_text() if text is None else text).splitlines():
        if not line or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(None if environment is None else dict(environment)):
            pins[str(canonicalize_name(wanted.name))] = next(iter(wanted.specifier)).version
    return pins


def installed(folder: Path | None = None) -> dict[str, str]:
    """Name and version of every package in `folder` (default: this Python's own site-packages), without `OWN`."""
    place = sysconfig.get_path("purelib") if folder is None else str(folder)
    found = {}
    for distribution in importlib.metadata.distributions(path=[place]):
        name = canonicalize_name(distribution.metadata["Name"])
        if name not in OWN:
            found[str(name)] = distribution.version
    return found


def differences(here: Mapping[str, str], lock: Mapping[str, str]) -> list[str]:
    """A line for each package of `here` that `lock` lacks or has in another version.

    Builds are not told apart (2.13.0+cpu is 2.13.0), and what torch's CUDA build brings is not in the lock on purpose.
    """
    lines = []
    for name, version in sorted(here.items()):
        if CUDA_ONLY.match(name):
            continue
        if name not in lock:
            lines.append(f"{name} {version}: not in the lock")
        elif Version(version).public != Version(lock[name]).public:
            lines.append(f"{name} {version}: {lock[name]} in the lock")
    return lines
