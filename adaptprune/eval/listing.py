"""Tasks as rows of plain data: for `adaptprune eval --list` and the table in the documentation."""

from __future__ import annotations

from typing import Any

from adaptprune.eval.benchmark import Benchmark
from adaptprune.eval.task import TASKS


def listing() -> list[dict[str, Any]]:
    """One row per task: name, title, metric, and for each split its size and files."""
    rows = []
    for name in TASKS.usable():
        kind = TASKS.get(name)
        splits = kind.splits if issubclass(kind, Benchmark) else {}
        folder = f"{kind.folders[0]}/" if splits and kind.folders else ""
        files = [
            {
                "name": split,
                "questions": found.questions,
                "files": {folder + file: what for file, what in found.files.items()},
            }
            for split, found in splits.items()
        ]
        rows.append(
            {
                "name": name,
                "title": getattr(kind, "title", name),
                "metric": getattr(kind, "metric", ""),
                "max_new_tokens": kind.max_new_tokens,
                "splits": files,
            }
        )
    return rows
