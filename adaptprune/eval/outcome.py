"""From a run's answers to everything that is written about them: numbers, tables, curves, files for servers."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adaptprune.disk import WriteError, write_text
from adaptprune.errors import reason
from adaptprune.eval import answers, speed
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.report import markdown, plot, plot_problem, table_csv
from adaptprune.eval.submission import JsonLines
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import Item, Submission, Tally, Task

log = logging.getLogger(__name__)
Lines = Sequence[dict[str, Any]]


def summarise(
    task: Task, wanted: Sequence[Column], folder: Path, files: dict[str, Path], model: str, max_errors: float
) -> Summary:
    """Read all answers: the numbers, the official metrics, the answers as LLaVA writes them, files for servers.

    A question that an official metric cannot take is one of the problems. What was added up until then is thrown away,
    so that it counts in no column, and the answers are read again without it.
    """
    untold: dict[str, str] = {}
    while True:
        tallies = {column: task.tally() for column in wanted}
        known = len(untold)
        found = {column.name: answers.read(files[column.name]) for column in wanted}
        watch = partial(_add_up, tallies, untold)
        summary = Summary(task.items(), found, wanted, watch, max_errors)
        if len(untold) == known:
            break
    _write_answers(task, wanted, folder, files, model)
    metrics = {} if summary.failed else _metrics(tallies)
    speeds = {column.name: speed.read(folder / "speed" / f"{column.file}.jsonl") for column in wanted}
    official = any(tally is not None for tally in tallies.values()) and not task.scored_by
    summary.complete(metrics, speeds, task.headline if official else "", task.scored_by)
    return summary


def _add_up(tallies: dict[Column, Tally | None], untold: dict[str, str], item: Item, lines: Lines) -> str:
    """Hand one question's answers to the columns' tallies; why it cannot count, if so."""
    if item.id in untold:
        return untold[item.id]
    try:
        for tally, line in zip(tallies.values(), lines, strict=True):
            if tally is not None:
                tally.add(item, line["answer"])
    except Exception as error:
        untold[item.id] = f"its answers cannot be added up ({reason(error)})"
        return untold[item.id]
    return ""


def _metrics(tallies: dict[Column, Tally | None]) -> dict[str, dict[str, float]]:
    found = {}
    for column, tally in tallies.items():
        if tally is None:
            continue
        try:
            found[column.name] = tally.result()
        except Exception as error:
            log.warning("the official numbers of %s cannot be worked out (%s)", column.name, reason(error))
    return found


def _write_answers(task: Task, wanted: Sequence[Column], folder: Path, files: dict[str, Path], model: str) -> None:
    """The answers of each column as LLaVA has them, and as the benchmark's server takes them."""
    for column in wanted:
        made = JsonLines(folder / "llava" / f"{column.file}.jsonl", partial(llava_line, model, column))
        writers: list[Submission | None] = [made, task.submission(folder / "submission", column.file)]
        for writer in writers:
            if writer is not None:
                _write_through(writer, task.items(), answers.read(files[column.name]))


def _write_through(writer: Submission, items: Iterable[Item], lines: Iterable[dict[str, Any]]) -> None:
    skipped, why = 0, ""
    for item, line in zip(items, lines, strict=True):
        try:
            writer.add(item, line["answer"])
        except WriteError:
            raise
        except Exception as error:
            skipped, why = skipped + 1, f"{item.id}: {reason(error)}"
    writer.close()
    if skipped:
        log.warning("%d answers are not in a file for the server, the last of them %s", skipped, why)


def llava_line(model: str, column: Column, item: Item, answer: str) -> dict[str, Any]:
    """An answer in the fields of LLaVA's evaluation scripts; the same answer has the same id in every run."""
    name = Path(model).name
    question_id = item.id if item.question_id is None else item.question_id
    extra = {key: value for key, value in item.extra.items() if key != "cells"}
    about = f"{name} {column.name} {item.id}".encode("utf-8", "backslashreplace").decode()
    return {
        "question_id": question_id,
        "prompt": item.prompt,
        "text": answer,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, about).hex,
        "model_id": name if column.method == UNPRUNED else f"{name} {column.name}",
        "metadata": {"problem": item.problem} if item.problem else {},
        **extra,
    }


def write_reports(summary: Summary, folder: Path, title: str) -> None:
    """summary.json, table.md, table.csv, and curves.png where there is something to draw and to draw it with."""
    write_text(folder / "summary.json", json.dumps(summary.to_dict(), indent=1) + "\n")
    write_text(folder / "table.md", markdown(summary))
    write_text(folder / "table.csv", table_csv(summary))
    curves = folder / "curves.png"
    if summary.failed or plot_problem():
        curves.unlink(missing_ok=True)  # of numbers that no longer hold
        return
    try:
        plot(summary, curves, f"{title}: {summary.questions} questions, 95 % intervals")
    except WriteError:
        raise
    except Exception as error:
        log.warning("the curves cannot be drawn (%s)", reason(error))
