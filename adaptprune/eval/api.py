"""One evaluation from start to end: load, run or continue, summarise, write every report."""

from __future__ import annotations

import inspect
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptprune.doctor import versions
from adaptprune.engines.transformers import TransformersEngine
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.page import write_page
from adaptprune.eval.report import markdown, plot, table_csv
from adaptprune.eval.runner import DOWNSAMPLE, Column, Runner, columns
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import TASKS, Task
from adaptprune.methods import list_methods
from adaptprune.models import POCKET, load


@dataclass(frozen=True)
class Result:
    """What an evaluation found; everything is in its folder too."""

    summary: Summary
    folder: Path


def make_tasks(names: Sequence[str], **options: Any) -> list[Task]:
    """Tasks by name; an unknown one is an error that names the closest."""
    return [TASKS.get(name)(**options) for name in names]


def make_columns(methods: Sequence[str], keep_ratios: Sequence[float]) -> list[Column]:
    """The unpruned column and every method (default: all registered, and downsampling) at every ratio."""
    return columns(list(methods) or [*list_methods(), DOWNSAMPLE], keep_ratios)


def evaluate(
    task: Task,
    wanted: Sequence[Column],
    folder: Path,
    *,
    loading: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    total: Callable[[int], None] = lambda count: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Result:
    """Run (or continue) a task; write run.json, answers/, summary.json, table.md, table.csv, curves.png, examples.html.

    Parameters
    ----------
    loading : mapping, optional
        Arguments of `adaptprune.load`, as plain values (no torch.dtype). Default: the pocket model.

    Raises
    ------
    AdaptPruneError
        The folder holds a run of something else, or the model cannot be loaded.
    """
    how = {**dict.fromkeys(inspect.getfullargspec(load).kwonlyargs), **(loading or {})}
    record = {
        "task": task.name,
        "settings": task.settings(),
        "model": how.pop("name_or_path", None) or POCKET,
        "batch_size": batch_size,
        **{key: value or None for key, value in how.items()},
    }
    _check_folder(folder, record)
    loaded, processor = load(**(loading or {}))
    _write_record(folder, record)
    items = task.items()
    total(len(items) * len(wanted))
    runner = Runner(loaded, processor, folder, batch_size=batch_size, progress=progress)
    answers = runner.run(task, wanted)
    summary = Summary(items, answers, wanted)
    (folder / "summary.json").write_text(json.dumps(summary.to_dict(), indent=1) + "\n")
    (folder / "table.md").write_text(markdown(summary))
    (folder / "table.csv").write_text(table_csv(summary))
    shown = f"{task.name}, {record['model']}: {len(items)} questions, 95 % intervals"
    plot(summary, folder / "curves.png", shown)
    shown_columns = _for_page(wanted)
    if shown_columns:
        write_page(TransformersEngine(loaded, processor), task, shown_columns, folder / "examples.html")
    return Result(summary, folder)


def _for_page(wanted: Sequence[Column]) -> list[Column]:
    """The first two methods that select tokens (not two variants of one), at the ratio closest to 10 %."""
    selecting = [column for column in wanted if column.pruner() is not None]
    if not selecting:
        return []
    ratio = min((column.keep_ratio for column in selecting), key=lambda r: abs(r - 0.1))
    first: dict[str, Column] = {}
    for column in selecting:
        if column.keep_ratio == ratio:
            first.setdefault(column.method.partition(":")[0], column)
    return list(first.values())[:2]


def _check_folder(folder: Path, record: dict[str, Any]) -> None:
    """Refuse a folder in which something else was run."""
    if folder.exists() and not folder.is_dir():
        raise AdaptPruneError(f"{str(folder)!r} is a file: name a folder for --out.")
    path = folder / "run.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())["run"]
        changed = [key for key, value in record.items() if before.get(key) != value]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AdaptPruneError(f"{str(path)!r} is damaged: use another --out folder.") from None
    if changed:
        parts = ", ".join(f"{key} was {before.get(key)!r}" for key in changed)
        raise AdaptPruneError(f"{str(folder)!r} holds another run ({parts}): use another --out folder.")


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    """What is needed to repeat the run; written once."""
    path = folder / "run.json"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    about = {"run": record, "command": sys.argv, "versions": versions(), "python": platform.python_version()}
    path.write_text(json.dumps({**about, "commit": _commit()}, indent=1) + "\n")


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it is one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
