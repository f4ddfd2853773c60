"""The measured tables of the model card, written from the results of ``adaptprune eval tabletop``.

Contract: ``python -m pocket.card`` fills the blocks between ``<!-- name -->`` and ``<!-- end name -->`` of the card
from a run's ``summary.json`` and ``run.json``, kept as ``docs/results/pocket-<name>.json`` and
``docs/results/pocket-<name>-run.json``. So no number of these tables is typed by hand; a test compares them.
"""

import argparse
import json
import re
import shlex
from pathlib import Path

from adaptprune.eval.report import by_group

CARD = Path("adaptprune/assets/pocket/README.md")
RESULTS = Path("docs/results")
BLOCKS = ("test", "hard", "gate")


def block(name: str, results: Path = RESULTS) -> str:
    """The command of a run and its table."""
    run = json.loads((results / f"pocket-{name}-run.json").read_text())
    summary = json.loads((results / f"pocket-{name}.json").read_text())
    command = shlex.join(["adaptprune", *run["command"][1:]])
    gate = summary["gate"]
    lines = ["", f"    {command}", "", by_group(summary)]
    if gate["random_loss_at_10_percent"] is not None:
        verdict = "passed" if gate["passed"] else "not passed"
        loss = 100 * gate["random_loss_at_10_percent"]
        lines += [f"Validity gate: random at 10 % loses {loss:.1f} points of the total: {verdict}.", ""]
    return "\n".join(lines)


def fill(card: str, results: Path = RESULTS) -> str:
    """The card with its blocks made anew."""
    for name in BLOCKS:
        card, found = re.subn(
            f"(<!-- {name} -->\n).*?(<!-- end {name} -->)",
            lambda match, name=name: match[1] + block(name, results) + match[2],  # type: ignore[misc]
            card,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(
                f"the card has {found} blocks named {name!r}, not 1: <!-- {name} --> ... <!-- end {name} -->"
            )
    return card


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", type=Path, default=CARD)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.card.write_text(fill(options.card.read_text(), options.results))


if __name__ == "__main__":
    main()
