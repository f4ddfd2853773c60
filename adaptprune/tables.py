"""What is registered, as rows of plain data: for the command line, and for the tables in the documents."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.families import CHECKED, FAMILIES, REFUSED, TYPES, missing, since, why_refused
from adaptprune.families.outcomes import read
from adaptprune.hooks.seams.versions import reaches
from adaptprune.methods import METHODS

#: What is known of a model type, best first: `families` explains each.
TIERS = ("tested", "checked", "unknown", "missing", "refused")


def methods() -> list[dict[str, Any]]:
    """One row per method: name, site, cues, cost, summary, options with their defaults, first layer, source.

    Those of other packages that cannot be used have none: `METHODS.problems()` says why.
    """
    rows = []
    problems = METHODS.problems()
    for name in METHODS.names():
        if name in problems:
            continue
        usual = METHODS.get(name)()
        row = {
            "name": name,
            "site": str(usual.site),
            "cues": sorted(usual.needs),
            "cost": str(usual.cost),
            "adaptive": bool(usual.adaptive),
            "summary": str(usual.summary),
            "options": {
                field.name: _plain(getattr(usual, field.name)) for field in dataclasses.fields(usual) if field.init
            },
            "smallest_layer": usual.smallest_layer,
            "paper": str(usual.paper),
        }
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """A default as JSON has it, or as Python writes it."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def families() -> list[dict[str, Any]]:
    """One row per model type: those of the installed transformers, and those that are registered.

    `tier` is one of

    - "tested": a tiny model of it, with its real processor, is in the tests of every change;
    - "checked": `prune` makes a check on the model in hand, which a tiny one has passed (or another package brings it);
    - "unknown": new in the installed transformers; `prune` makes the same check, and nobody has tried it;
    - "missing": not in the installed transformers;
    - "refused": it cannot be pruned; `detail` says why, and what to do.
    """
    from adaptprune.hooks.seams.catalogue import image_text_types

    names = [*FAMILIES.names(), *(name for name in image_text_types() if name not in FAMILIES.names())]
    rows = [_family(name) for name in names]
    return sorted(rows, key=lambda row: TIERS.index(row["tier"]))


def _family(name: str) -> dict[str, Any]:
    known = read()
    found = known["types"].get(name, {})
    row: dict[str, Any] = {
        "model_type": name,
        "tier": "unknown",
        "summary": "",
        "detail": "",
        "geometry": found.get("geometry"),
        "supports": _supports(found),
        "since": since(name),
    }
    if (reason := why_refused(name)) is not None:
        return {**row, "tier": "refused", "detail": reason, "supports": {}}
    if name in FAMILIES.names():
        try:
            row["summary"] = TYPES[name].summary if name in TYPES else FAMILIES.get(name).summary
        except AdaptPruneError as error:  # of another package
            return {**row, "tier": "refused", "detail": str(error), "supports": {}}
        row["tier"] = "tested" if name in TYPES else "checked"
        if (reason := missing(name)) is not None:
            return {**row, "tier": "missing", "detail": reason}
        if name in TYPES and not reaches(TYPES[name].since):
            row["tier"] = "checked"
    elif found.get("tier") == "checked":
        row |= {"tier": "checked", "summary": CHECKED.get(name, "")}
    else:
        row["summary"] = f"not tried with transformers {known['transformers']} or before"
    return {**row, "detail": _special(found)}


def _special(found: dict[str, Any]) -> str:
    """What to know of a model type that can be pruned."""
    special = [
        "tokens have no grid: they count as one row" if found.get("geometry") == "row" else "",
        "some layers hold no keys" if found.get("keyless") else "",
        "some layers share keys" if found.get("shared keys") else "",
        found.get("limit", ""),
    ]
    return "; ".join(filter(None, special))


def _supports(found: dict[str, Any]) -> dict[str, bool]:
    """Whether tokens can leave before layer 0 already, and whether there is a way in for videos."""
    return {"encoder": not found.get("deepstack", False), "video": found.get("video", False)}


def markdown() -> dict[str, str]:
    """The tables of the documents, by the name of their place in them. They do not depend on what is installed."""
    lines = ["| method | site | looks at | keeps | time | source |", "|---|---|---|---|---|---|"]
    for row in methods():
        cells = (", ".join(row["cues"]), row["summary"], row["cost"], row["paper"])
        lines.append(f"| `{row['name']}` | {row['site']} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return {"methods": "\n".join(lines), "families": _short(), "types": _long()}


def _short() -> str:
    """The model types of each tier, in a table of three rows."""
    known = read()["types"]
    checked = [name for name, row in known.items() if row["tier"] == "checked"]
    rows = (("tested", TYPES), ("checked", checked), ("refused", REFUSED))
    lines = ["| tier | model types |", "|---|---|"]
    return "\n".join([*lines, *(f"| {tier} ({len(names)}) | {_listed(names)} |" for tier, names in rows)])


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _long() -> str:
    """One row per model type that can be pruned, then those that cannot."""
    known = read()["types"]
    lines = ["| `model_type` | models | tier | layer 0 | video | what to know |", "|---|---|---|---|---|---|"]
    for name in [*TYPES, *(name for name, row in known.items() if row["tier"] == "checked")]:
        found = known.get(name, {})
        marks = " | ".join("yes" if there else "-" for there in _supports(found).values())
        tier, summary = ("tested", TYPES[name].summary) if name in TYPES else ("checked", CHECKED.get(name, ""))
        lines.append(f"| `{name}` | {summary} | {tier} | {marks} | {_special(found)} |")
    lines += ["", "| refused | why |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {why_refused(name)} |" for name in REFUSED)])


def fill(text: str) -> str:
    """`text` with every table between ``<!-- NAME -->`` and ``<!-- end NAME -->`` that is there written anew."""
    for name, table in markdown().items():
        start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if start not in text:
            continue
        head, _, rest = text.partition(start)
        tail = rest.partition(end)[2]
        text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


if __name__ == "__main__":
    for each in sys.argv[1:]:
        path = Path(each)
        path.write_text(fill(path.read_text()))
