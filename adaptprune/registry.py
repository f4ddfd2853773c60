"""Named things, imported on first use: built-ins, what is registered at run time, and other packages' entry points.

Also the spec strings of the command line, ``name:option=value,option=value``. Knows nothing of pruning.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any

from adaptprune.errors import AdaptPruneError, first_line

log = logging.getLogger(__name__)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed name, if any is close, then all of them."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Allowed: {', '.join(names) or '(none)'}."


class Registry:
    """Names to objects, imported lazily. What another package breaks is said in one line, and only its name is lost.

    Parameters
    ----------
    kind : str
        What is registered, for error messages ("method").
    builtin : dict of str to str
        Name to ``"module:attribute"``.
    group : str
        Entry point group through which other packages add names.
    check : callable, optional
        Takes a name and the object of another package, and raises if it is not what is registered here.
    """

    def __init__(
        self, kind: str, builtin: dict[str, str], group: str, check: Callable[[str, Any], None] | None = None
    ) -> None:
        self.kind = kind
        self.group = group
        self._targets: dict[str, str | Any] = dict(builtin)
        self._check = check
        self._packages: dict[str, str] = {}
        self._clashes: dict[str, str] = {}
        self._said: set[str] = set()
        self._plugins_read = False

    def add(self, name: str, target: Any) -> None:
        """Register an object, or a ``"module:attribute"`` string, under a name. Replaces what had that name."""
        self._targets[name] = target
        self._packages.pop(name, None)

    def names(self) -> list[str]:
        """All names, built-ins first, in the order in which they were registered; nothing is imported."""
        if not self._plugins_read:
            self._plugins_read = True
            for point in _points(self.group):
                package = _package(point)
                if point.name not in self._targets:
                    self._targets[point.name] = point.value
                    self._packages[point.name] = package
                elif package != self._packages.get(point.name):
                    owner = self._packages.get(point.name)
                    taken = f"package {owner!r} has one of that name" if owner else "there is one of that name here"
                    self._clashes[f"{package}/{point.name}"] = (
                        f"{self.kind} {point.name!r} of package {package!r} is left out: {taken}. Uninstall one, or "
                        "rename it in its entry point."
                    )
        return list(self._targets)

    def usable(self) -> list[str]:
        """The names without those of other packages that cannot be used, which are said in the log, once each."""
        problems = self.problems()
        for key, problem in problems.items():
            if key not in self._said:
                self._said.add(key)
                log.warning("%s", problem)
        return [name for name in self.names() if name not in problems]

    def problems(self) -> dict[str, str]:
        """What is wrong with what other packages bring: a line for each name that cannot be used; imports them all."""
        self.names()
        found: dict[str, str] = {}
        for name in self._packages:
            try:
                self.get(name)
            except AdaptPruneError as error:
                found[name] = str(error)
        return {**found, **self._clashes}

    def get(self, name: str) -> Any:
        """The object of that name.

        Raises
        ------
        AdaptPruneError
            There is none (the closest is named), or the package that brings it cannot be imported, or brings something
            else.
        """
        if name not in self.names():
            raise AdaptPruneError(f"unknown {self.kind} {name!r}.{did_you_mean(name, self.names())}")
        target = self._targets[name]
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        package = self._packages.get(name)
        where = f"{self.kind} {name!r}" + (f" of package {package!r}" if package else "")
        hint = f" Mend or uninstall {package}." if package else ""
        try:
            found = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:  # what other people's modules do when they are imported
            reason = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
            raise AdaptPruneError(f"{where} cannot be imported from {target!r}: {reason}.{hint}") from error
        if package and self._check is not None:
            try:
                self._check(name, found)
            except Exception as error:
                raise AdaptPruneError(f"{where} cannot be used: {first_line(error).rstrip('.')}.{hint}") from error
        self._targets[name] = found
        return found


def _points(group: str) -> list[EntryPoint]:
    """The entry points of a group; a package whose metadata cannot be read has none."""
    try:
        return list(entry_points(group=group))
    except Exception:  # one of all packages that are installed is broken: ask one by one
        found: list[EntryPoint] = []
        for distribution in distributions():
            try:
                found += [point for point in distribution.entry_points if point.group == group]
            except Exception:
                log.debug("the entry points of a package cannot be read", exc_info=True)
        return found


def _package(point: EntryPoint) -> str:
    try:
        return str(point.dist.name if point.dist is not None else point.value)
    except Exception:  # a package without a name
        return point.value


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``"adaptprune:keep_ratio=0.1,layer=2"`` into its name and its options.

    Values are Python literals (numbers, True, None, tuples in brackets); anything else is taken as a string.
    """
    name, _, rest = (part.strip() for part in spec.partition(":"))
    options: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in between_commas(rest))):
        key, equals, text = (p.strip() for p in part.partition("="))
        if not key or not equals or not text:
            raise AdaptPruneError(f"cannot read {part!r} in {spec!r}: write it as name:option=value,option=value.")
        if key in options:
            raise AdaptPruneError(f"option {key!r} is given twice in {spec!r}: keep one.")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            options[key] = text
    return name, options


def between_commas(text: str) -> list[str]:
    """`text` between its commas, those inside brackets, or inside quotes around a value, excepted."""
    parts, depth, quote, before = [""], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote and before != "\\" else quote
        elif letter in "'\"" and before in "=([{,:":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
        if quote or letter != " ":
            before = "" if before == "\\" else letter  # a backslash that is itself escaped escapes nothing
    return text.split(",") if quote or depth else parts
