"""What is registered, as rows of plain data: for the command line, and for the tables in the README."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from adaptprune.families import FAMILIES, missing, since
from adaptprune.methods import METHODS


def methods() -> list[dict[str, Any]]:
    """One row per method: name, summary, options with their defaults, the first layer it can prune before, source."""
    rows = []
    for name in METHODS.names():
        kind = METHODS.get(name)
        options = {field.name: field.default for field in dataclasses.fields(kind)}
        smallest = kind().smallest_layer
        row = {
            "name": name,
            "summary": kind.summary,
            "options": options,
            "smallest_layer": smallest,
            "paper": kind.paper,
        }
        rows.append(row)
    return rows


def families() -> list[dict[str, Any]]:
    """One row per model type: what it is, what is supported, and why it is not to be had here (None if it is)."""
    rows = []
    for name in FAMILIES.names():
        kind = FAMILIES.get(name)
        row = {
            "model_type": name,
            "summary": kind.summary,
            "supports": dict(kind.supports),
            "since": since(name),
            "missing": missing(name),
        }
        rows.append(row)
    return rows


def markdown() -> dict[str, str]:
    """The tables of the README, by the name of their place in it."""
    lines = ["| method | keeps | prunes from layer | source |", "|---|---|---|---|"]
    lines += [f"| `{m['name']}` | {m['summary']} | {m['smallest_layer']} | {m['paper'] or '-'} |" for m in methods()]
    rows = families()
    supports = list(rows[0]["supports"])
    more = [f"| `model_type` | models | {' | '.join(supports)} |", "|---|---|" + "---|" * len(supports)]
    for family in rows:
        marks = " | ".join("yes" if family["supports"][name] else "-" for name in supports)
        more.append(f"| `{family['model_type']}` | {family['summary']} | {marks} |")
    return {"methods": "\n".join(lines), "families": "\n".join(more)}


def fill(text: str) -> str:
    """`text` with every table between ``<!-- NAME -->`` and ``<!-- end NAME -->`` written anew."""
    for name, table in markdown().items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        head, _, rest = text.partition(start)
        tail = rest.partition(end)[2]
        text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(fill(path.read_text()))
