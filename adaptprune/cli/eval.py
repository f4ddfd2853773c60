"""`adaptprune eval`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from adaptprune.cli.app import print_json
from adaptprune.cli.loading import loading_options
from adaptprune.cli.quiet import progress_bars
from adaptprune.errors import AdaptPruneError

if TYPE_CHECKING:
    from adaptprune.eval.columns import Column
    from adaptprune.eval.task import Task


@loading_options
def command(
    task: list[str] = typer.Argument(None, help="What to evaluate: see --list."),
    list_tasks: bool = typer.Option(False, "--list", help="Show tasks, metrics, files and sizes, and stop."),
    data: Path = typer.Option(None, help="Folder with the benchmarks' folders (LLaVA's playground/data/eval)."),
    method: list[str] = typer.Option(
        [], help="Methods or specs. Default: adaptprune; tabletop: six rules, downsample among them."
    ),
    keep_ratio: list[float] = typer.Option([], help="Fractions of visual tokens kept. Default: as the task has it."),
    loading: Any = None,
    split: str = typer.Option(None, help="Split of the task. Default: its first."),
    limit: int = typer.Option(None, help="Only the first so many questions."),
    num_chunks: int = typer.Option(None, help="Cut the questions into so many parts, ..."),
    chunk_idx: int = typer.Option(None, help="... and answer this one, counted from 0."),
    question_file: Path = typer.Option(None, help="custom: questions in LLaVA's jsonl."),
    image_folder: Path = typer.Option(None, help="custom: folder of their pictures."),
    answers_file: str = typer.Option(None, help="Also write answers in LLaVA's fields here; {column} for several."),
    pictures: int = typer.Option(None, help="tabletop: how many pictures, up to eight questions each. Default: 40."),
    kind: list[str] = typer.Option([], help="tabletop: question types. Default: all."),
    batch_size: int = typer.Option(16, help="Questions answered at once."),
    max_new_tokens: int = typer.Option(None, help="Longest answer. Default: as LLaVA-1.5's script for the task."),
    protocol: str = typer.Option("auto", help="llava-1.5 (Vicuna's system prompt, padded pictures), model, or auto."),
    workers: int = typer.Option(4, help="Threads that open pictures ahead."),
    examples: int = typer.Option(20, help="Questions shown in examples.html."),
    max_errors: float = typer.Option(0.05, help="Share of the questions that may fail; more: no scores, exit code 1."),
    lmms: list[str] = typer.Option([], help="Tasks of lmms-eval to run through its own code instead."),
    out: Path = typer.Option(None, help="Folder for answers and reports; run again with the same one to continue."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Measure accuracy under pruning, with the unpruned model as a baseline in the same run."""
    from adaptprune.cli import evalshow
    from adaptprune.eval import api

    if list_tasks:
        return evalshow.tasks(as_json)
    progress_bars(not as_json)
    loaded, stamp = api.Model(loading), time.strftime("%Y%m%d-%H%M%S")
    if lmms and task:
        raise AdaptPruneError(f"{task[0]!r} and --lmms {lmms[0]!r} are two runs: name tasks of one kind.")
    if lmms:
        from adaptprune.eval import lmms as bridge

        wanted = api.make_columns(method or ["adaptprune"], keep_ratio or [0.1])
        folder = out or Path("runs") / f"eval-lmms-{stamp}"
        asked: dict[str, Any] = {"batch_size": batch_size, "limit": limit, "protocol": protocol, "include": data}
        found = bridge.evaluate(lmms, wanted, loaded, folder, **asked)
        return evalshow.lmms(found, folder, as_json)
    given = {
        "data": data, "split": split, "limit": limit, "num_chunks": num_chunks, "chunk_idx": chunk_idx,
        "question_file": question_file, "image_folder": image_folder, "pictures": pictures, "kinds": kind or None,
    }  # fmt: skip
    tasks = api.make_tasks(task or [], **{name: value for name, value in given.items() if value is not None})
    columns = [api.make_columns(method, keep_ratio, one) for one in tasks]
    options = {
        "batch_size": batch_size, "max_new_tokens": max_new_tokens, "protocol": protocol, "workers": workers,
        "examples": examples, "max_errors": max_errors, "answers_file": answers_file,
    }  # fmt: skip
    return _all(list(zip(tasks, columns, strict=True)), out, stamp, {**options, "model": loaded}, as_json)


def _all(
    asked: list[tuple[Task, list[Column]]], out: Path | None, stamp: str, options: dict[str, Any], as_json: bool
) -> None:
    """Check every task, then carry out one after another; exit code 1 at the end if one has no scores to show."""
    from adaptprune.cli import evalshow
    from adaptprune.eval import api

    plans = []
    for task, wanted in asked:
        folder = out or Path("runs") / f"eval-{task.name}-{stamp}"
        plans.append(api.prepare(task, wanted, folder if len(asked) == 1 else folder / task.name, **options))
    evalshow.notes(plans)
    found, failed = {}, {}
    for plan in plans:
        try:
            result = evalshow.with_bar(plan)
        except AdaptPruneError as error:
            if len(plans) == 1 or not options["model"].is_loaded:  # nor will it be for the next one
                raise
            failed[plan.task.name] = str(error).rstrip(".")
            continue
        found[plan.task.name] = result.summary.to_dict()
        if result.summary.failed:
            failed[plan.task.name] = result.summary.failed
        if not as_json:
            evalshow.result(plan.task, result)
    if as_json:
        print_json(found if len(plans) > 1 else next(iter(found.values())))
    evalshow.failures(failed)
    if failed:
        raise typer.Exit(1)


command.__name__ = "eval"
