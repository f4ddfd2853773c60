"""The measured tables of the model card and of the README, written from the results of ``adaptprune eval tabletop``.

Contract: ``python -m pocket.card`` fills the blocks between ``<!-- pocket-NAME -->`` and ``<!-- end pocket-NAME -->``
from a run's ``summary.json`` and ``run.json``, kept as ``pocket-NAME.json``, ``pocket-NAME-run.json`` in docs/results.
So no number of these tables is typed by hand; a test compares them.
"""

import argparse
import json
import re
import shlex
from pathlib import Path

from adaptprune.eval.report import ahead, by_column, by_group
from adaptprune.tabletop import QUESTION_TYPES

PAGES = (Path("adaptprune/assets/pocket/README.md"), Path("README.md"))
RESULTS = Path("docs/results")
FEW = 3  # columns that fit beside each other with their intervals
GROUPS = ("total", *QUESTION_TYPES, "two_images")


def block(name: str, results: Path = RESULTS) -> str:
    """The command of a run and its table."""
    run = json.loads((results / f"pocket-{name}-run.json").read_text())
    summary = json.loads((results / f"pocket-{name}.json").read_text())
    command = shlex.join(["adaptprune", *run["command"][1:]])
    commit = (run["commit"] or "unknown")[:10]
    gate = summary["gate"]
    lines = ["", f"    {command}      # at commit {commit}", ""]
    if len(summary["columns"]) <= FEW:
        lines.append(by_group(summary))
    else:
        first = summary["columns"][1]["method"]
        lines += [by_column(summary, GROUPS), f"Differences of the total, of {first}, in points:", ""]
        lines.append(ahead(summary, first))
    if gate["random_loss_at_10_percent"] is not None:
        verdict = "passed" if gate["passed"] else "not passed"
        loss = 100 * gate["random_loss_at_10_percent"]
        lines += [f"Validity gate: random at 10 % loses {loss:.1f} points of the total: {verdict}.", ""]
    return "\n".join(lines)


def fill(text: str, results: Path = RESULTS) -> str:
    """A page with those of its blocks made anew whose results there are."""
    for name in re.findall("<!-- end pocket-(.*?) -->", text):
        text, found = re.subn(
            f"(<!-- pocket-{name} -->\n).*?(<!-- end pocket-{name} -->)",
            lambda match, name=name: match[1] + block(name, results) + match[2],  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(f"{found} blocks named pocket-{name}, not 1: <!-- pocket-{name} --> ... <!-- end ... -->")
    return text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path, nargs="*", default=PAGES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for page in options.pages:
        page.write_text(fill(page.read_text(), options.results))


if __name__ == "__main__":
    main()
