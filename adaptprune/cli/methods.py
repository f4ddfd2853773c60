"""`adaptprune methods`"""

from __future__ import annotations

import typer
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the selection rules, their options and defaults."""
    from adaptprune.tables import methods

    rows = methods()
    if as_json:
        print_json(rows)
        return
    table = Table("method", "what it keeps", "options (defaults)", "source")
    for row in rows:
        options = "\n".join(f"{key}={value}" for key, value in row["options"].items())
        table.add_row(row["name"], row["summary"], options, row["paper"])
    stdout.print(table)
    stdout.print("[dim]Write a method as name or name:option=value,option=value[/]")


command.__name__ = "methods"
