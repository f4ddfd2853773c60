"""`adaptprune families`"""

from __future__ import annotations

import typer
from rich.table import Table

from adaptprune.cli.app import print_json, stdout


def command(
    tier: str = typer.Option("", help="Only those of one tier: tested, checked, unknown, missing or refused."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """List the model types of the installed transformers and how far it is proven that each is pruned rightly."""
    from adaptprune.errors import AdaptPruneError
    from adaptprune.hooks.seams.versions import installed
    from adaptprune.registry import did_you_mean
    from adaptprune.tables import TIERS, families

    if tier and tier not in TIERS:
        raise AdaptPruneError(f"unknown tier {tier!r}.{did_you_mean(tier, TIERS)}")
    rows = families()
    shown = [row for row in rows if not tier or row["tier"] == tier]
    if as_json:
        print_json(shown)
        return
    table = Table("model_type", "tier", "what it is; what to know", "layer 0", "video")
    for row in shown:
        marks = ("yes" if row["supports"].get(name) else "-" for name in ("encoder", "video"))
        table.add_row(row["model_type"], row["tier"], "; ".join(filter(None, (row["summary"], row["detail"]))), *marks)
    stdout.print(table)
    counts = ((name, sum(row["tier"] == name for row in rows)) for name in TIERS)
    stdout.print(
        f"transformers {installed()}: " + ", ".join(f"{count} {name}" for name, count in counts if count) + ". "
        "tested: in the tests of every change, with its real processor. checked: by its structure; prune() tries the "
        "model in hand first."
    )


command.__name__ = "families"
