"""Runs notebooks and keeps what they print and show: ``python -m tools.notebooks [--check] [FILE ...]``.

Without a Jupyter kernel: the code cells of a notebook are run one after another in one namespace. What is printed is
kept as text; a picture (PIL) as the last expression of a cell is kept as PNG. ``--check`` writes nothing and fails if a
cell prints something else than is kept.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "notebooks"


def run(notebook: dict[str, Any], name: str) -> list[str]:
    """Run all code cells and put their outputs in place; what each printed."""
    module = types.ModuleType("notebook_cells")
    sys.modules[module.__name__] = module  # dataclasses look themselves up
    printed, number = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        text, value = _cell("".join(cell["source"]), vars(module), f"{name}[{number}]")
        printed.append(text)
        cell["execution_count"], cell["outputs"] = number, _outputs(text, value, number)
    return printed


def _cell(source: str, namespace: dict[str, Any], name: str) -> tuple[str, Any]:
    """What a cell printed, and the value of its last expression."""
    tree, value = ast.parse(source, name), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return out.getvalue(), value


def _outputs(text: str, value: Any, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if text:
        found.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if hasattr(value, "save"):  # a picture
        data = io.BytesIO()
        value.save(data, "PNG")
        shown = {"image/png": base64.b64encode(data.getvalue()).decode(), "text/plain": ["a picture"]}
        found.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown})
    elif value is not None:
        plain = {"text/plain": repr(value).splitlines(keepends=True)}
        found.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": plain})
    return found


def kept(notebook: dict[str, Any]) -> list[str]:
    """What each code cell printed when it was run last."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(out["text"]) for out in cell["outputs"] if "text" in out) for cell in cells]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wrong = 0
    for path in options.files or sorted(FOLDER.glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        before, after = kept(notebook), run(notebook, path.name)
        if not options.check:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        elif before != after:
            print(f"{path}: prints something else than is kept; run python -m tools.notebooks", file=sys.stderr)
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
