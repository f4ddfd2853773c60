"""Notebooks run as they stand, and print what is kept in them."""

from __future__ import annotations

import json

import pytest

from tools.notebooks import FOLDER, kept, run

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_keeps(path):
    notebook = json.loads(path.read_text())
    before = kept(notebook)
    assert any(before)
    assert run(notebook, path.name) == before
    shown = [out for cell in notebook["cells"] for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert shown


def test_there_are_notebooks():
    assert NOTEBOOKS
