"""What the review commands share: options of the judge, the progress bar, the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout
from adaptprune.errors import AdaptPruneError

OUTPUT = typer.Option(None, help="Reviews, jsonl; run again with the same one to continue.")
JUDGE_MODEL = typer.Option(None, help="The model that reviews. Scores of different judges do not compare.")
JUDGE_URL = typer.Option(None, help="OpenAI-compatible endpoint, http://localhost:8000/v1. Default: OpenAI's.")
KEY_VARIABLE = typer.Option("OPENAI_API_KEY", help="Environment variable that holds the judge's key.")
TEMPERATURE = typer.Option(None, help="Default: 0.2, or 0 for MM-Vet.")
MAX_TOKENS = typer.Option(None, help="Default: 1024, or 16 for MM-Vet.")
REQUEST = typer.Option(None, help="Further fields of the request, JSON; null drops one: '{\"seed\": 1}'.")
TIMEOUT = typer.Option(120.0, help="Seconds that one attempt may stay silent.")
DEADLINE = typer.Option(900.0, help="Seconds for one review, all attempts included.")
RETRIES = typer.Option(5, help="Attempts after the first one; pauses grow, Retry-After is obeyed.")
CONCURRENCY = typer.Option(4, help="Reviews under way at once.")
LIMIT = typer.Option(None, help="Only the first so many questions.")
JSON = typer.Option(False, "--json", help="Print JSON.")


def subcommand(context: typer.Context) -> bool:
    """Whether another command follows; options before it would be lost, so they are an error."""
    if context.invoked_subcommand is None:
        return False
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            raise AdaptPruneError(f"{option} stands before {context.invoked_subcommand!r}: write it after.")
    return True


def required(**options: Any) -> None:
    """An error that names the first option that is not given."""
    for name, value in options.items():
        if value is None:
            raise AdaptPruneError(f"missing option --{name.replace('_', '-')}. See adaptprune review --help.")


def make_judge(options: Mapping[str, Any]) -> Any:
    """The judge that a command's options describe."""
    from adaptprune.review import Judge

    text = options["request"]
    try:
        fields = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise AdaptPruneError(f"--request {text!r} is no JSON object: write it like '{{\"seed\": 1}}'.")
    same = ("key_variable", "temperature", "max_tokens", "timeout", "deadline", "retries", "concurrency")
    return Judge(options["judge_model"], options["judge_url"], request=fields, **{name: options[name] for name in same})


@contextmanager
def bar(what: str, shown: bool) -> Iterator[Callable[[int, int, int], None]]:
    """A bar with an estimate of the time left, and the count of failures once there are any."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=stderr, disable=not shown)
    line = progress.add_task(what, total=None)

    def update(done: int, total: int, failed: int) -> None:
        progress.start()  # not before the files are read: a mistake in one is a line of its own
        name = f"{what}, {failed} failed" if failed else what
        progress.update(line, completed=done, total=total, description=name)

    try:
        yield update
    finally:
        if progress.live.is_started:
            progress.stop()


def finish(outcome: Any, as_json: bool) -> None:
    """Show the summary of what is in the file now; exit code 1 if reviews failed."""
    from adaptprune.review import summarize

    summary = summarize(outcome.output)
    if as_json:
        print_json({**outcome.to_dict(), "summary": summary.to_dict()})
    else:
        show(summary)
        if outcome.failed:
            stdout.print(
                f"{outcome.failed} of {outcome.reviews} reviews failed: run the same command again to repeat them"
            )
    if outcome.failed:
        raise typer.Exit(1)


def show(summary: Any) -> None:
    from adaptprune.review.report import cells, header, notes

    stdout.print(f"[bold]{escape(str(summary.file))}[/]")
    table = Table(*header(summary))
    for row in cells(summary):
        table.add_row(*map(escape, row))
    stdout.print(table)
    for line in notes(summary):
        stdout.print(escape(line))
