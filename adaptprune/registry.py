"""Named things, imported on first use: built-ins, what is registered at run time, and other packages' entry points.

Also the spec strings of the command line, ``name:option=value,option=value``. Knows nothing of pruning.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from adaptprune.errors import AdaptPruneError


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, if any is close, then all of them."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Allowed: {', '.join(names) or '(none)'}."


class Registry:
    """Names to objects, imported lazily.

    Parameters
    ----------
    kind : str
        What is registered, for error messages ("method").
    builtin : dict of str to str
        Name to ``"module:attribute"``.
    group : str
        Entry point group through which other packages add names.
    """

    def __init__(self, kind: str, builtin: dict[str, str], group: str) -> None:
        self.kind = kind
        self.group = group
        self._targets: dict[str, str | Any] = dict(builtin)
        self._plugins_read = False

    def add(self, name: str, target: Any) -> None:
        """Register an object, or a ``"module:attribute"`` string, under a name. Replaces what had that name."""
        self._targets[name] = target

    def names(self) -> list[str]:
        """All names, built-ins first, in the order in which they were registered."""
        if not self._plugins_read:
            self._plugins_read = True
            for point in entry_points(group=self.group):
                self._targets.setdefault(point.name, point.value)
        return list(self._targets)

    def get(self, name: str) -> Any:
        """The object of that name; AdaptPruneError names the closest one if there is none."""
        if name not in self.names():
            raise AdaptPruneError(f"unknown {self.kind} {name!r}.{did_you_mean(name, self.names())}")
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._targets[name] = getattr(importlib.import_module(module), attribute)
        return target


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``"adaptprune:keep_ratio=0.1,layer=2"`` into its name and its options.

    Values are Python literals (numbers, True, None); anything else is taken as a string.
    """
    name, _, rest = (part.strip() for part in spec.partition(":"))
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, text = (p.strip() for p in part.partition("="))
        if not key or not equals or not text:
            raise AdaptPruneError(f"cannot read {part!r} in {spec!r}: write it as name:option=value,option=value.")
        if key in options:
            raise AdaptPruneError(f"option {key!r} is given twice in {spec!r}: keep one.")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return name, options
