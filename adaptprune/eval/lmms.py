"""A bridge to lmms-eval: any of its tasks, asked of our models, column by column, with its own metrics.

lmms-eval is an optional extra, imported only here and in `lmms_model`. It finds our model class by the entry point
``lmms_eval.models``, too: ``lmms_eval --model adaptprune --model_args pretrained=...,method=fastv,keep_ratio=0.1``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptprune.disk import Lock, write_text
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.api import Model, check_folder, write_record
from adaptprune.eval.columns import Column


def manifest() -> Any:
    """What lmms-eval's registry of models wants to know."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("adaptprune", simple_class_path="adaptprune.eval.lmms_model.AdaptPruned")


def evaluate(
    tasks: Sequence[str],
    wanted: Sequence[Column],
    model: Model,
    folder: Path,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    protocol: str = "auto",
    include: Path | None = None,
) -> list[dict[str, Any]]:
    """Run lmms-eval's tasks under every column; a column that an earlier run finished is read from its file.

    Parameters
    ----------
    tasks : sequence of str
        lmms-eval's names.
    include : Path, optional
        A folder with task files (yaml) besides those that lmms-eval has.

    Returns
    -------
    list of dict
        method, keep_ratio, task, metric, value, and relative to the unpruned column.
    """
    try:
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise AdaptPruneError(f"--lmms needs lmms-eval ({error}): pip install 'adaptprune[lmms]'.") from None
    manager = TaskManager("WARNING", include_path=str(include) if include else None)
    for name in tasks:
        if name not in manager.all_tasks:
            raise AdaptPruneError(f"lmms-eval has no task {name!r}: see lmms_eval --tasks list.")
    settings = {"tasks": list(tasks), "limit": limit}
    record = {"task": "lmms-eval", "settings": settings, "batch_size": batch_size, "protocol": protocol}
    record |= model.record()
    with Lock(folder / ".lock", repr(str(folder))):
        check_folder(folder, record)
        write_record(folder, record, model.loaded[0], protocol)
        results: dict[Column, dict[str, Any]] = {}
        for column in wanted:
            path = folder / "lmms" / f"{column.file}.json"
            if not path.exists():
                found = _column(tasks, column, model, manager, batch_size=batch_size, limit=limit, protocol=protocol)
                write_text(path, json.dumps(found, indent=1, default=str) + "\n")
            results[column] = json.loads(path.read_text())
        rows = [row for column, found in results.items() for row in _rows(column, found, results[wanted[0]])]
        write_text(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    return rows


def _column(
    tasks: Sequence[str],
    column: Column,
    model: Model,
    manager: Any,
    *,
    batch_size: int,
    limit: int | None,
    protocol: str,
) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate

    from adaptprune.eval.lmms_model import AdaptPruned

    found: dict[str, Any] = simple_evaluate(
        model=AdaptPruned(model=model, column=column, protocol=protocol, batch_size=batch_size), tasks=list(tasks),
        limit=limit, batch_size=batch_size, task_manager=manager, bootstrap_iters=0, verbosity="WARNING",
    )["results"]  # fmt: skip
    return found


def _rows(column: Column, found: dict[str, Any], unpruned: dict[str, Any]) -> list[dict[str, Any]]:
    """Every number of a column's results; lmms-eval calls them ``metric,filter``."""
    rows = []
    for task, metrics in found.items():
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or "stderr" in name or "," not in name:
                continue
            base = unpruned[task].get(name)
            rows.append(
                {
                    "method": column.method,
                    "keep_ratio": column.keep_ratio,
                    "task": task,
                    "metric": name.partition(",")[0],
                    "value": value,
                    "relative": value / base if base else None,
                }
            )
    return rows
