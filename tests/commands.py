"""`adaptprune ...` in this process, which saves the seconds of starting another."""

from __future__ import annotations

import io
import sys
from typing import NamedTuple

import pytest

from adaptprune.cli import main


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_here(monkeypatch, capsys, *words: str, text: str = "") -> Ran:
    """Run a command with `text` as its input."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["adaptprune", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return Ran(end.value.code or 0, out, err)
