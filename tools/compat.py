"""The tests that depend on transformers, on several of its releases in turn.

    python -m tools.compat [VERSION ...] [--write] [--before-locked]

transformers alone is swapped: each release is installed without its dependencies into a folder of its own, which the
tests find first. Of what a release asks for, only what .venv has in a version that it refuses comes along into that
folder. A run in which the tests imported another version than they should fails. `--write` notes the runs in
docs/results/compat.json and in the README's table. Exit code 1 if a version fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import outcomes
from tools.versions import installed, locked

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "compat.json"
README = ROOT / "README.md"
START, END = "<!-- compat -->", "<!-- end compat -->"

#: What depends on transformers: the hooks and all that they reach into.
TESTS = [
    *("tests/test_hooks.py", "tests/test_hooks_edges.py", "tests/test_mask_oracle.py", "tests/test_families.py"),
    *("tests/test_conversations.py", "tests/test_generating.py", "tests/test_video.py", "tests/test_wrapped.py"),
    *("tests/test_kernels.py", "tests/test_serve_batch.py", "tests/test_serve_decoders.py", "tests/test_chat.py"),
    *("tests/test_seams.py", "tests/test_sabotage.py", "tests/test_sabotage_caches.py"),
    *("tests/test_sabotage_forwards.py", "tests/test_sequences.py", "tests/test_sequences_assisted.py"),
    *("tests/test_sequences_threads.py", "tests/test_switching_attention.py", "tests/test_embeddings.py"),
    *("tests/test_embeddings_edges.py", "tests/test_prompt_tuning.py", "tests/test_doctor.py"),
    *("tests/test_hooks_in_use.py", "tests/test_geometry.py", "tests/test_other_memories.py"),
    *("tests/test_selfcheck.py", "tests/test_front_ends.py", "tests/test_cues.py", "tests/test_tower.py"),
    *("tests/test_tower_attention.py", "tests/test_addons.py"),
]
#: Run each time, besides the locked one and a newer minor release. The first is the lower bound in pyproject.toml.
ALWAYS = {"5.16.1": "oldest; vLLM 0.33 asks for it or newer, below 5.21", "5.19.0": "what SGLang 0.5.23 asks for"}

#: Why others are worth a run.
NAMED = {"5.17.0": "what CUDA images carry", "5.20.2": "the newest for Python 3.10"}


def lock() -> str:
    """The release that the lock has for the Pythons that transformers still supports."""
    return locked(environment={"python_full_version": "3.12.0", "python_version": "3.12"})["transformers"]


def why(version: str) -> str:
    """What stands in the README next to a version."""
    reasons = [ALWAYS.get(version) or NAMED.get(version, ""), "locked" if version == lock() else ""]
    reasons += ["newer than the lock" if Version(version) > Version(lock()) else ""]
    return ", ".join(reason for reason in reasons if reason) or "on request"


def newer(available: Iterable[str], than: str) -> str | None:
    """The newest of the available releases if its minor number is above that of `than`, else None."""
    finals = [Version(text) for text in available if not Version(text).is_prerelease]
    newest = max(finals, default=Version(than))
    return str(newest) if newest.release[:2] > Version(than).release[:2] else None


def available() -> list[str]:
    """The releases of transformers that the registry has; where it is silent none, and a line that says so."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "transformers"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in answer.stdout.splitlines():
        if line.startswith("Available versions:"):
            return [word.strip() for word in line.partition(":")[2].split(",")]
    print("the registry could not be asked for newer releases", file=sys.stderr)
    return []


def unmet(requires: Iterable[str], have: Mapping[str, str]) -> list[str]:
    """A package's requirements that `have` lacks or has in a version out of range; extras are not looked at."""
    wanted = []
    for text in requires:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        version = have.get(canonicalize_name(need.name))
        if version is None or not need.specifier.contains(version, prereleases=True):
            wanted.append(f"{need.name}{need.specifier}")
    return wanted


def provide(version: str) -> Path | None:
    """The folder that holds `version`, or None for the one that .venv has itself. LookupError if it cannot be had."""
    base = installed()
    if base["transformers"] == version:
        return None
    folder = Path(sys.prefix) / "compat" / version
    if not folder.exists():
        part = folder.with_name(f"{version}.part")
        shutil.rmtree(part, ignore_errors=True)
        wanted, rounds = [f"transformers=={version}"], 0
        while wanted:
            rounds += 1
            if rounds > 5:  # what came along asks for versions that exclude each other
                raise LookupError(f"no versions fit together: {' '.join(wanted)}")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--no-deps"]
            if subprocess.run([*pip, "--upgrade", "--target", str(part), *wanted]).returncode:
                raise LookupError(f"pip could not install {' '.join(wanted)}")
            wanted = unmet(_requires(part), {**base, **installed(part)})
        part.rename(folder)
    return folder


def _requires(folder: Path) -> list[str]:
    return [text for found in importlib.metadata.distributions(path=[str(folder)]) for text in found.requires or []]


def mismatch(used: Mapping[str, str], version: str, folder: Path | None) -> str:
    """What is wrong with the transformers that the tests imported, or nothing."""
    if not used:
        return "no test imported transformers"
    if {used["version"], used["metadata"]} != {version}:
        return f"the tests used transformers {used['version']} with the metadata of {used['metadata']}"
    if folder is not None and not Path(used["file"]).is_relative_to(folder):
        return f"the tests imported {used['file']}"
    return ""


def run(version: str) -> tuple[dict[str, Any], outcomes.Outcome]:
    """Run the tests on one version: the row for the results, and the outcome."""
    folder = provide(version)
    with tempfile.TemporaryDirectory() as place:
        note = Path(place) / "used.json"
        paths = [str(folder)] if folder else []
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        variables = {"TRANSFORMERS_USED": str(note), "PYTHONPATH": os.pathsep.join(paths)}
        outcome = outcomes.run(sys.executable, TESTS, variables, plugin="tools.used")
        used = json.loads(note.read_text()) if note.exists() else {}
    outcome.stopped = outcome.stopped or mismatch(used, version, folder)
    brought = installed(folder) if folder else {}
    row = {
        "version": version,
        "why": why(version),
        "passed": outcome.passed,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "python": used.get("python"),
        "torch": used.get("torch"),
        "with": {name: number for name, number in sorted(brought.items()) if name != "transformers"},
        "seconds": round(outcome.seconds),
    }
    return row, outcome


def merged(rows: Sequence[Mapping[str, Any]], fresh: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`rows` with those of `fresh` in the place of older ones, by version."""
    by_version = {row["version"]: row for row in [*rows, *fresh]}
    return sorted(by_version.values(), key=lambda row: Version(row["version"]))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The README's table."""
    lines = ["| transformers | why this one | tests passed |", "|---|---|---|"]
    for row in rows:
        tests = "not run yet"
        if row["passed"] is not None:
            ran = row["passed"] + row["failed"]
            tests = f"{row['passed']} of {ran}" + (f", {row['skipped']} skipped" if row["skipped"] else "")
        lines.append(f"| {row['version']} | {row['why']} | {tests} |")
    return "\n".join(lines)


def fill(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """`text` with the table between its two markers written anew."""
    head, _, rest = text.partition(START)
    return f"{head}{START}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def write(fresh: Sequence[Mapping[str, Any]]) -> None:
    """Note rows in the results and in the README."""
    content = json.loads(RESULTS.read_text())
    rows = merged(content["versions"], fresh)
    content["versions"] = [{**row, "why": why(row["version"])} for row in rows]
    content["tests"] = TESTS
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")
    README.write_text(fill(README.read_text(), content["versions"]))


def chosen(asked: Sequence[str], before_locked: bool) -> list[str]:
    """The versions to run: those asked for, or oldest, pinned, locked and a newer minor release, in order."""
    here = locked()["transformers"]
    if asked:
        return list(asked)
    if before_locked:
        return [version for version in ALWAYS if Version(version) < Version(here)]
    return sorted({*ALWAYS, here, newer(available(), here) or here}, key=Version)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compat", description="The tests on releases of transformers."
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="default: oldest, pinned, locked, newer minor")
    parser.add_argument("--write", action="store_true", help="note the runs in the results and in the README")
    parser.add_argument("--before-locked", action="store_true", help="only older releases than the one in .venv")
    options = parser.parse_args(arguments)
    missing = [test for test in TESTS if not (ROOT / test).is_file()]
    if missing:
        print(f"no such tests: {', '.join(missing)}; see TESTS in tools/compat.py", file=sys.stderr)
        return 1
    rows, good = [], True
    for version in chosen(options.versions, options.before_locked):
        try:
            row, outcome = run(version)
        except LookupError as error:
            print(f"transformers {version}: {error}", flush=True)
            good = False
            continue
        rows.append(row)
        good = good and outcome.good
        numbers = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        brought = "".join(f" (with {name} {number})" for name, number in row["with"].items())
        line = f"transformers {version}{brought}: {numbers} in {outcome.seconds:.0f} s"
        print(line, *outcome.lines(), sep="\n  ", flush=True)
    if options.write:
        write(rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
