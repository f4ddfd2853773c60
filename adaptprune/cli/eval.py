"""`adaptprune eval`"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout
from adaptprune.cli.loading import loading_options
from adaptprune.cli.quiet import progress_bars


@loading_options
def command(
    task: list[str] = typer.Argument(..., help="What to evaluate: tabletop."),
    method: list[str] = typer.Option([], help="Methods or specs. Default: every registered one, and downsample."),
    keep_ratio: list[float] = typer.Option([0.5, 0.25, 0.1, 0.05, 0.02], help="Fractions of visual tokens kept."),
    loading: Any = None,
    split: str = typer.Option("test", help="Split of the task."),
    pictures: int = typer.Option(60, help="How many pictures, up to eight questions each (the test split has 2000)."),
    kind: list[str] = typer.Option([], help="Question types. Default: all about one picture."),
    batch_size: int = typer.Option(16, help="Questions answered at once."),
    out: Path = typer.Option(None, help="Folder for answers and reports; run again with the same one to continue."),
    as_json: bool = typer.Option(False, "--json", help="Print the summary as JSON."),
) -> None:
    """Measure accuracy under pruning, with the unpruned model as a baseline in the same run."""
    from adaptprune.eval import api

    chosen = api.make_tasks(task, split=split, pictures=pictures, **({"kinds": kind} if kind else {}))
    wanted = api.make_columns(method, keep_ratio)
    progress_bars(not as_json)
    for one in chosen:
        folder = out or Path("runs") / f"eval-{one.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = folder if len(chosen) == 1 else folder / one.name
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr
        ) as bar:
            line = bar.add_task(f"{one.name} answers", total=None)
            result = api.evaluate(
                one,
                wanted,
                folder,
                loading=loading,
                batch_size=batch_size,
                total=partial(_set_total, bar, line),
                progress=partial(bar.advance, line),
            )
        if as_json:
            print_json(result.summary.to_dict())
        else:
            _show(result, folder)


command.__name__ = "eval"


def _set_total(bar: Progress, line: TaskID, count: int) -> None:
    bar.update(line, total=count)


def _show(result: Any, folder: Path) -> None:
    from adaptprune.eval.report import cells, header

    groups = [name for name in result.summary.groups if name != "caption"][:10]
    table = Table(*header(result.summary, groups))
    for row in result.summary.rows:
        table.add_row(*cells(row, groups))
    stdout.print(table)
    gate = result.summary.gate()
    if gate["random_loss_at_10_percent"] is not None:
        verdict = "passed" if gate["passed"] else "NOT passed: differences between methods mean little on this model"
        stdout.print(f"validity gate (random at 10 % loses {gate['random_loss_at_10_percent']:.1%}): {verdict}")
    stdout.print(f"[dim]accuracies in percent, ± half of the 95 % interval; written to {folder}[/]")
