"""`adaptprune families`"""

from __future__ import annotations

import typer
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the model families that can be pruned and what is supported for each."""
    from adaptprune.tables import families

    rows = families()
    if as_json:
        print_json(rows)
        return
    supports = list(rows[0]["supports"])
    table = Table("model_type", "what it is", *supports)
    for row in rows:
        there = row["missing"] is None
        marks = [("yes" if row["supports"][name] else "no") if there else "-" for name in supports]
        table.add_row(row["model_type"], row["summary"] if there else f"{row['missing']}: {row['summary']}", *marks)
    stdout.print(table)


command.__name__ = "families"
