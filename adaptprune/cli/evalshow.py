"""How `adaptprune eval` shows tasks and results on a terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout
from adaptprune.eval.api import Plan, Result
from adaptprune.eval.task import Task

MOST_GROUPS = 5
NARROW = 3  # up to as many columns fit next to one another: then every question type has a line
MOST_PROBLEMS = 5


def tasks(as_json: bool) -> None:
    """Every task with its metric, and what each split needs."""
    from adaptprune.eval.listing import listing

    rows = listing()
    if as_json:
        return print_json(rows)
    for row in rows:
        stdout.print(f"[bold]{row['name']}[/]  {row['title']}: {row['metric']}", soft_wrap=True)
        for split in row["splits"]:
            size = f"{split['questions']:,} questions" if split["questions"] else "as many questions as it has"
            stdout.print(f"    {split['name']}: {size}")
            for name, what in split["files"].items():
                stdout.print(f"        {name}  [dim]{what.rstrip(',')}[/]", soft_wrap=True)
    return None


def notes(plans: list[Plan]) -> None:
    """What there is to say before anything is done, each thing once."""
    for note in dict.fromkeys(f"note: {note}" for plan in plans for note in plan.notes):
        stderr.print(note, markup=False)


def failures(failed: dict[str, str]) -> None:
    """Said last: which tasks have no numbers, and why."""
    for name, why in failed.items():
        stderr.print(f"FAILED: {name}: {why}.", markup=False)


def with_bar(plan: Plan) -> Result:
    """The bar appears when the number of answers is known: before that, a mistake is all there is to say."""
    parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*parts, console=stderr)
    line = bar.add_task(f"{plan.task.name} answers", total=None)

    def total(count: int) -> None:
        bar.update(line, total=count)
        bar.start()

    try:
        return plan.run(total, partial(bar.advance, line))
    finally:
        if bar.live.is_started:  # else it would end in an empty line
            bar.stop()


def result(task: Task, found: Result) -> None:
    """The table, what could not be asked, and where the rest is."""
    from adaptprune.eval.report import by_group, cells, header

    summary = found.summary
    groups = list(summary.groups)[:MOST_GROUPS]
    if task.name == "tabletop" and len(summary.rows) <= NARROW and summary.groups:
        groups = list(summary.groups)
        stdout.print(by_group(summary.to_dict()), highlight=False, soft_wrap=True)
    else:
        table = Table(*header(summary, groups))
        for row in summary.rows:
            table.add_row(*cells(summary, row, groups))
        stdout.print(table)
    for problem in summary.problems[:MOST_PROBLEMS]:
        stderr.print(f"failed: {problem['id']}: {problem['why']}", markup=False)
    if summary.problem_count:
        total = summary.problem_count + summary.questions
        more = ", the first of them above; all in summary.json" if summary.problem_count > MOST_PROBLEMS else ""
        stderr.print(f"{summary.problem_count} of {total} questions failed{more}", markup=False)
    gate = summary.gate()
    if task.name == "tabletop" and gate["random_loss_at_10_percent"] is not None:
        verdict = "passed" if gate["passed"] else "NOT passed: differences between methods mean little on this model"
        stdout.print(f"validity gate (random at 10 % loses {gate['random_loss_at_10_percent']:.1%}): {verdict}")
    rest = f"{len(summary.groups) - len(groups)} more types in table.md; " if len(summary.groups) > len(groups) else ""
    stdout.print(f"[dim]accuracies in percent, ± half of the 95 % interval; {rest}written to {found.folder}[/]")


def lmms(found: list[dict[str, Any]], folder: Path, as_json: bool) -> None:
    """One row per column, task and metric of lmms-eval."""
    if as_json:
        return print_json(found)
    table = Table("method", "keep", "task", "metric", "value", "of unpruned")
    for row in found:
        relative = "-" if row["relative"] is None else f"{100 * row['relative']:.1f}"
        table.add_row(
            row["method"], f"{row['keep_ratio']:g}", row["task"], row["metric"], f"{row['value']:.4f}", relative
        )
    stdout.print(table)
    return stdout.print(f"[dim]written to {folder}[/]")
