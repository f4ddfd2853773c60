"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from adaptprune.cli import main
from adaptprune.tables import fill

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(name: str) -> str:
    return README.partition(f"<!-- {name} -->")[2].partition(f"<!-- end {name} -->")[0]


def test_the_tables_are_the_generated_ones():
    assert fill(README) == README, "run `make tables`"


def test_the_demo_prints_what_is_shown(capsys, monkeypatch, tmp_path):
    """The same commands give the same answers and counts; times differ."""
    shown = re.findall(r"\$ (adaptprune run .*)\n(.+)\n(.+?), selection", block("demo"))
    assert len(shown) == 3
    for command, answer, kept in shown:
        assert "--keep-ratio 0.1 " in command
        words = shlex.split(command)
        words[words.index("--overlay") + 1] = str(tmp_path / "overlay.png")
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == answer
        assert printed[1].startswith(kept)


def test_the_quick_start_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "orange"
    assert lines[1].startswith("kept 57 of 576 visual tokens")


def test_files_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (root / target).exists(), target
