"""What is registered, as rows of plain data: for the command line, and for the tables in the README."""

from __future__ import annotations

import dataclasses
from typing import Any

from adaptprune.families import FAMILIES
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
    """One row per model type: what it is and what is supported."""
    rows = []
    for name in FAMILIES.names():
        kind = FAMILIES.get(name)
        rows.append({"model_type": name, "summary": kind.summary, "supports": dict(kind.supports)})
    return rows


def markdown() -> str:
    """The two tables of the README."""
    lines = ["| method | keeps | prunes from layer | source |", "|---|---|---|---|"]
    lines += [f"| `{m['name']}` | {m['summary']} | {m['smallest_layer']} | {m['paper'] or '-'} |" for m in methods()]
    rows = families()
    supports = list(rows[0]["supports"])
    lines += ["", f"| `model_type` | models | {' | '.join(supports)} |", "|---|---|" + "---|" * len(supports)]
    for family in rows:
        marks = " | ".join("yes" if family["supports"][name] else "-" for name in supports)
        lines.append(f"| `{family['model_type']}` | {family['summary']} | {marks} |")
    return "\n".join(lines)
