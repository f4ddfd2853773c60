"""`adaptprune doctor`"""

from __future__ import annotations

import typer
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Show versions, devices and which optional parts are installed; exit code 1 if something needed is missing."""
    from adaptprune.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
    else:
        table = Table("what", "found")
        for name, value in found["versions"].items():
            table.add_row(name, value)
        for device in found["devices"]:
            table.add_row("device", device)
        for name, value in found["optional"].items():
            table.add_row(f"optional: {name}", value or "not installed")
        for name, value in found["checks"].items():
            table.add_row(f"check: {name}", "ok" if value is None else f"FAILED: {value}")
        stdout.print(table)
    if any(found["checks"].values()):
        raise typer.Exit(1)


command.__name__ = "doctor"
