"""`adaptprune methods`"""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(
    name: str = typer.Argument("", help="Show one of them, with its options."),
    site: str = typer.Option("", help="Only those of one site: encoder, decoder, both or any."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the selection rules: where each takes tokens out, what it looks at, its cost and source."""
    from adaptprune.checks import one_of
    from adaptprune.methods import METHODS
    from adaptprune.pruner import SITES
    from adaptprune.tables import methods

    if site:
        one_of("site", site, SITES)
    if name:
        METHODS.get(name)
    rows = [row for row in methods() if row["name"] == (name or row["name"]) and row["site"] == (site or row["site"])]
    for problem in METHODS.problems().values():
        print(f"warning: {problem}", file=sys.stderr)
    if as_json:
        print_json(rows)
    elif name and rows:
        _one(rows[0])
    else:
        _all(rows)


def _all(rows: list[dict[str, Any]]) -> None:
    table = Table("method", "site", "looks at", "what it keeps", "time", "source")
    for row in rows:
        cells = (row["name"], row["site"], ", ".join(row["cues"]), row["summary"], row["cost"], row["paper"])
        table.add_row(*map(escape, cells))
    stdout.print(table)
    stdout.print(
        f"[dim]{len(rows)} rules. Write one as name or name:option=value,option=value; `adaptprune methods NAME` lists "
        "its options.[/]"
    )


def _one(row: dict[str, Any]) -> None:
    from adaptprune.cues import CUES

    stdout.print(f"[bold]{escape(row['name'])}[/] keeps {escape(row['summary'])}")
    stdout.print(f"site: {row['site']}; source: {escape(row['paper'] or '-')}; time: {escape(row['cost'] or '-')}")
    for cue in row["cues"]:
        stdout.print(escape(f"looks at {cue}: {CUES[cue.partition(':')[0]]}"))
    table = Table("option", "default")
    for option, default in row["options"].items():
        table.add_row(option, escape(str(default)))
    stdout.print(table)


command.__name__ = "methods"
