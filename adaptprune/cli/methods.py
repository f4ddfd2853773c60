"""`adaptprune methods`"""

from __future__ import annotations

import sys

import typer
from rich.markup import escape
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the selection rules, their options and defaults."""
    from adaptprune.methods import METHODS
    from adaptprune.tables import methods

    rows = methods()
    for problem in METHODS.problems().values():
        print(f"warning: {problem}", file=sys.stderr)
    if as_json:
        print_json(rows)
        return
    table = Table("method", "what it keeps", "options (defaults)", "source")
    for row in rows:
        options = "\n".join(f"{key}={value}" for key, value in row["options"].items())
        table.add_row(*(escape(cell) for cell in (row["name"], row["summary"], options, row["paper"])))
    stdout.print(table)
    stdout.print("[dim]Write a method as name or name:option=value,option=value[/]")


command.__name__ = "methods"
