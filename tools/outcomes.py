"""Running the tests in another Python, and what came of it, file by file."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    """Numbers of tests, and for each file with failures how many there were and the first line of the first error."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    stopped: str = ""  #: why pytest did not come to its end, if it did not

    @property
    def good(self) -> bool:
        """Whether tests have run and none failed."""
        return self.passed > 0 and not self.failed and not self.stopped

    def lines(self) -> list[str]:
        """What breaks, one line a file."""
        rows = [f"{name}: {count} failed; {error}" for name, (count, error) in sorted(self.broken.items())]
        return rows + ([f"pytest stopped: {self.stopped}"] if self.stopped else [])


def read(report: str, root: Path = ROOT) -> Outcome:
    """The outcome in pytest's JUnit XML. A file that cannot be imported counts as one failed test."""
    outcome = Outcome()
    for case in ET.fromstring(report).iter("testcase"):
        trouble = case.find("failure")
        trouble = case.find("error") if trouble is None else trouble
        if trouble is not None:
            name = _file(case, root)
            count, first = outcome.broken.get(name, (0, _error(trouble)))
            outcome.broken[name] = (count + 1, first)
            outcome.failed += 1
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1
    return outcome


def _file(case: ET.Element, root: Path) -> str:
    """The test's file. The report joins modules, classes and tests by dots: the longest beginning that is a file."""
    parts = [part for part in f"{case.get('classname', '')}.{case.get('name', '')}".split(".") if part]
    for end in range(len(parts), 0, -1):
        path = Path(*parts[:end]).with_suffix(".py")
        if "/" not in parts[end - 1] and (root / path).is_file():
            return path.as_posix()
    return case.get("classname") or case.get("name") or "?"


def _error(trouble: ET.Element) -> str:
    """The first line that pytest marks as the error; the innermost cause stands first."""
    marked = [line[1:].strip() for line in (trouble.text or "").splitlines() if line.startswith("E ")]
    lines = marked or (trouble.get("message") or "no message").splitlines()
    return lines[0][:200]


def run(
    python: str, tests: Sequence[str], variables: Mapping[str, str] | None = None, plugin: str = "", show: bool = False
) -> Outcome:
    """Run `tests` (all, if there are none) with the Python at `python`; `show` prints pytest's output as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", f"--junitxml={report}", "-p", "no:cacheprovider", "--durations=0"]
        command += ["--durations-min=60", "--continue-on-collection-errors"]
        command += [*(["-p", plugin] if plugin else []), *tests]
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=60)
        for line in process.stdout:
            last.append(line.rstrip())
            if show:
                print(line, end="", flush=True)
        code = process.wait()
        outcome = read(report.read_text(), ROOT) if report.exists() else Outcome()
        outcome.seconds = time.monotonic() - start
    if code not in (0, 1) or (code and not outcome.broken):
        outcome.stopped = f"exit code {code}; {_reason(list(last))}"
    return outcome


def _reason(lines: list[str]) -> str:
    """The line of pytest's last words that says most: an error that it marks, or the last one."""
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    named = [line for line in lines if "Error" in line]
    return (marked or named[-1:] or [line for line in lines if line][-1:] or ["no output"])[0][:200]
