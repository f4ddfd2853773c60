"""Training-free visual token pruning for vision-language models on stock transformers.

Public names only; each is imported on first use, so that ``import adaptprune`` and the command line start fast.
"""

from __future__ import annotations

import importlib

from adaptprune._version import __version__

TYPE_CHECKING = False  # as type checkers know it: importing it takes longer than all the rest here
if TYPE_CHECKING:
    from typing import Any

    from adaptprune.cues import VisualTokens
    from adaptprune.errors import AdaptPruneError
    from adaptprune.families import list_families
    from adaptprune.hooks import PruneHandle, prune
    from adaptprune.methods import list_methods, make_pruner
    from adaptprune.methods.adaptprune import AdaptPrune
    from adaptprune.methods.fastv import FastV
    from adaptprune.methods.grid import Grid
    from adaptprune.methods.pool import Pool
    from adaptprune.methods.random import Random
    from adaptprune.models import load
    from adaptprune.pruner import Pruner
    from adaptprune.report import PruneReport

_HOME = {
    "AdaptPruneError": "adaptprune.errors",
    "list_families": "adaptprune.families",
    "PruneHandle": "adaptprune.hooks",
    "prune": "adaptprune.hooks",
    "list_methods": "adaptprune.methods",
    "make_pruner": "adaptprune.methods",
    "AdaptPrune": "adaptprune.methods.adaptprune",
    "FastV": "adaptprune.methods.fastv",
    "Grid": "adaptprune.methods.grid",
    "Pool": "adaptprune.methods.pool",
    "Random": "adaptprune.methods.random",
    "load": "adaptprune.models",
    "Pruner": "adaptprune.pruner",
    "VisualTokens": "adaptprune.cues",
    "PruneReport": "adaptprune.report",
}

__all__ = [
    "AdaptPrune",
    "AdaptPruneError",
    "FastV",
    "Grid",
    "PruneHandle",
    "Pool",
    "PruneReport",
    "Pruner",
    "Random",
    "VisualTokens",
    "__version__",
    "list_families",
    "list_methods",
    "load",
    "make_pruner",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("adaptprune.ops")
    if name not in _HOME:
        raise AttributeError(f"module 'adaptprune' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
