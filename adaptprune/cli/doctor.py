"""`adaptprune doctor`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout

#: An optional part that is missing is nothing to worry about.
ABSENT = "not installed"


def command(
    models: bool = typer.Option(
        True,
        "--models/--no-models",
        help="Try every family on a tiny model built here: 10 to 60 s, no network, no GPU.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show versions and devices, and try every model family against the mask oracle with the installed transformers.

    Exit code 1 if something that is needed is missing, or if a family does not work.
    """
    from adaptprune.doctor import examine, works

    found = examine(models=models, watch=_watch, skipped="--no-models was given")
    if as_json:
        print_json(found)
    else:
        _show(found)
    if not works(found):
        raise typer.Exit(1)


command.__name__ = "doctor"


def _watch(names: list[str]) -> Iterator[str]:
    """The names one by one, with a progress bar for somebody at a terminal."""
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            yield name
            progress.advance(task)


def _show(found: dict[str, Any]) -> None:
    stdout.print(_installed(found))
    if found["models"] is None:
        stdout.print(f"models: not checked, {found['models_skipped']}")
        return
    stdout.print(_seams(found))
    stdout.print(_models(found["models"]))
    for model in found["models"]:
        for line in _wrong(model):
            stdout.print(escape(f"{model['name']}: {line}"))
    stdout.print(_summary(found["models"]))


def _installed(found: dict[str, Any]) -> Table:
    table = Table("what", "found")
    for name, value in found["versions"].items():
        table.add_row(name, value)
    judgement = found["transformers"]["judgement"]
    if not found["transformers"]["tested"]:
        judgement += ", so look at the table of models below" if found["models"] else ", and the models are not checked"
    table.add_row("this transformers is", judgement)
    for device in found["devices"]:
        table.add_row("device", escape(device))
    for name, value in found["optional"].items():
        table.add_row(f"optional: {name}", value or ABSENT)
    for name, value in found["checks"].items():
        table.add_row(f"check: {name}", "ok" if value is None else escape(f"FAILED: {value}"))
    return table


def _seams(found: dict[str, Any]) -> Table:
    """How this transformers meets what is assumed about it; which models do, where it is not all of them."""
    table = Table("seam of transformers", "found here", "by")
    everybody = {model["name"] for model in found["models"] if model["seams"]}
    for name, seam in found["seams"].items():
        for finding, who in seam["found"].items():
            table.add_row(name, escape(finding), "all" if everybody <= set(who) else ", ".join(who))
    return table


def _models(models: list[dict[str, Any]]) -> Table:
    caption = "each built here with random weights, pruned, and compared with itself, the dropped tokens masked"
    table = Table("model", "result", "off the mask oracle", "seconds", caption=caption)
    for model in models:
        status = model["status"]
        result = {"ok": "ok", "failed": "FAILED, see below"}.get(status, model["detail"])
        tried = status in ("ok", "failed")
        deviation = f"{model['deviation']:.0e}" if model["deviation"] is not None else ""
        table.add_row(model["name"], escape(result), deviation, f"{model['seconds']:.1f}" if tried else "")
    return table


def _wrong(model: dict[str, Any]) -> list[str]:
    """What went wrong with a model, one line for all attention implementations that say the same."""
    lines: dict[str, list[str]] = {}
    for attention, text in model["errors"].items():
        lines.setdefault(text, []).append(attention)
    return [f"({', '.join(who)}) {text}" for text, who in lines.items()]


def _summary(models: list[dict[str, Any]]) -> str:
    counts = {status: sum(model["status"] == status for model in models) for status in ("ok", "failed")}
    others = len(models) - sum(counts.values())
    text = f"{counts['ok']} of {len(models)} models work"
    text += f", {counts['failed']} failed" if counts["failed"] else ""
    return text + (f", {others} could not be tried" if others else "")
