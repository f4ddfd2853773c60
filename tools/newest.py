"""The tests beyond the lock: with the newest of everything that the registry has.

    python -m tools.newest [--torch SPEC] [TEST ...]        # run by `make newest`, in .venv-newest

The upper bounds in pyproject.toml do not hold here: names are installed without them, then the package without its
dependencies. Packages that cannot be installed are named, and the tests run without them. At the end stands what
differs from the lock and what breaks. Exit code 1 if anything does.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import outcomes
from tools.versions import differences, installed, locked

ROOT = Path(__file__).parents[1]


def loosened(requirement: str) -> str:
    """The requirement without anything that holds its version down: lower bounds, exclusions and markers stay."""
    need = Requirement(requirement)
    kept = []
    for bound in need.specifier:
        if bound.operator in (">=", ">", "!="):
            kept.append(str(bound))
        elif bound.operator in ("~=", "==", "==="):
            kept.append(f">={bound.version.removesuffix('.*')}")
    need.specifier = SpecifierSet(",".join(kept))
    return str(need)


def wanted(project: Mapping[str, Any], extra: str = "test") -> list[str]:
    """What the package and its extra ask for, loosened; extras that name the package's own extras are followed."""
    found, todo, seen = [], [*project["dependencies"]], {extra}
    todo += project["optional-dependencies"][extra]
    while todo:
        need = Requirement(todo.pop(0))
        if canonicalize_name(need.name) != canonicalize_name(project["name"]):
            found.append(loosened(str(need)))
            continue
        for further in sorted(need.extras - seen):
            seen.add(further)
            todo += project["optional-dependencies"][further]
    return list(dict.fromkeys(found))


def with_torch(requirements: Sequence[str], torch: str) -> list[str]:
    """The requirements with torch as asked for on the command line, in the first place: others follow it."""
    return [torch, *(text for text in requirements if canonicalize_name(Requirement(text).name) != "torch")]


def install(requirements: Sequence[str], attempt: Callable[[Sequence[str]], str]) -> list[str]:
    """Install all at once; where that fails, one after another, each next to the first. A line for each that fails.

    Args:
        requirements: what to install.
        attempt: installs several at once and says what went wrong, or nothing.
    """
    if not attempt(requirements):
        return []
    first, *others = requirements
    trouble = attempt([first])
    lines, held = ([f"{first}: {trouble}"], []) if trouble else ([], [first])
    for requirement in others:
        trouble = attempt([*held, requirement])
        if trouble:
            lines.append(f"{requirement}: {trouble}")
    return lines


def pip(requirements: Sequence[str], *options: str) -> str:
    """Install or upgrade; the first error that pip prints, or nothing."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-compile", *options]
    result = subprocess.run([*command, *requirements], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode == 0:
        return ""
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"pip ended with exit code {result.returncode}"])[0]


def newest(requirements: Sequence[str]) -> str:
    """Install the newest versions, of dependencies too."""
    return pip(requirements, "--upgrade", "--upgrade-strategy", "eager")


def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.newest", description="The tests with the newest of everything."
    )
    parser.add_argument("--torch", default="torch", help="requirement for torch, such as torch==2.13.0")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="files of tests; default: all")
    options = parser.parse_args(arguments)
    if Path(sys.prefix).resolve() != ROOT / ".venv-newest":
        print("this changes the packages of the Python it runs in: use `make newest`", file=sys.stderr)
        return 1
    missing = install(with_torch(wanted(project()), options.torch), newest)
    trouble = pip(["--editable", str(ROOT)], "--no-deps")
    if trouble:
        print(f"the package itself cannot be installed: {trouble}")
        return 1
    print(f"  {len(installed())} packages; now the tests", flush=True)
    outcome = outcomes.run(sys.executable, options.tests, show=True)
    changed, broken = differences(installed(), locked()), outcome.lines()
    for title, lines in (("other than the lock", changed), ("cannot be installed", missing), ("breaks", broken)):
        print(f"\n{title}:", *(lines or ["nothing"]), sep="\n  ")
    print(f"\n{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped")
    return 0 if outcome.good and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
