"""Accuracy of every rule at equal budgets: ``python -m benchmarks.accuracy [--pictures N] [--split S] [--method M]``.

Answers Tabletop's questions under every rule and ratio with the model in the package (or --model), goes on where it
stopped, and writes docs/results/accuracy-SPLIT.json and docs/accuracy.md. With --write the document is written anew
from what is there, and nothing is asked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
RESULTS, DOCUMENT = HERE / "docs" / "results", HERE / "docs" / "accuracy.md"
SPLITS = {"test": "crowded", "plain": "plain", "hard": "hard"}
RATIOS = (0.25, 0.1, 0.05, 0.02)
#: Rules that a picture on this model can be asked for; those for videos are left out, and those whose mean over layers
#: cannot be as low on six layers.
METHODS = (
    "adaptprune-plus", "adaptprune", "adaptprune-encoder", "adaptprune-encoder:cue=affinity", "fastv", "priortr",
    "sieve", "dart", "vlm-pruner", "sparsevlm", "visionzip", "fastervlm", "vispruner", "prumerge", "prumerge-plus",
    "holov", "hired", "nuwa", "tome", "hawk", "divprune", "cenprune", "cdpruner", "otprune", "scope", "eadp",
    "zooprune", "deft", "tops", "random", "grid", "pool", "downsample",
)  # fmt: skip
START, END = "<!-- accuracy -->", "<!-- end accuracy -->"


def measure(split: str, options: argparse.Namespace) -> None:
    """Ask, or go on asking, and keep the summary."""
    folder = options.out / split
    command = [sys.executable, "-m", "adaptprune", "eval", "tabletop", "--split", split, "--out", str(folder)]
    command += ["--pictures", str(options.pictures), "--method", *options.method]
    command += ["--keep-ratio", *map(str, options.keep_ratio)]
    if options.model:
        command += ["--model", options.model]
    subprocess.run(command, check=True)
    (RESULTS / f"accuracy-{split}.json").write_text((folder / "summary.json").read_text())


def table(summary: dict[str, Any]) -> str:
    """Rules by ratios: total accuracy with its interval, the best of a ratio in bold."""
    totals: dict[str, dict[float, dict[str, float]]] = {}
    for column in summary["columns"]:
        totals.setdefault(column["method"], {})[column["keep_ratio"]] = column["groups"]["total"]["accuracy"]
    unpruned = totals.pop("unpruned")[1.0]
    ratios = sorted({ratio for row in totals.values() for ratio in row}, reverse=True)
    best = {ratio: max(row[ratio]["value"] for row in totals.values() if ratio in row) for ratio in ratios}
    lines = ["| rule | " + " | ".join(f"{ratio:.0%} kept" for ratio in ratios) + " |", "|---|" + "---|" * len(ratios)]
    lines.append("| unpruned | " + " | ".join([_cell(unpruned)] * len(ratios)) + " |")
    order = sorted(totals, key=lambda name: -sum(each["value"] for each in totals[name].values()))
    for name in order:
        cells = [_cell(totals[name].get(ratio), best[ratio]) for ratio in ratios]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, float] | None, best: float = 2.0) -> str:
    if found is None:
        return "-"
    text = f"{100 * found['value']:.1f} ({100 * found['low']:.0f}-{100 * found['high']:.0f})"
    return f"**{text}**" if found["value"] >= best else text


def write() -> None:
    """The tables of the document, from the results that are there."""
    parts = []
    for split, title in SPLITS.items():
        path = RESULTS / f"accuracy-{split}.json"
        if path.exists():
            summary = json.loads(path.read_text())
            parts.append(f"### {title.capitalize()} pictures (`--split {split}`), {summary['questions']} questions")
            parts.append(table(summary))
    head, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(head + START + "\n" + "\n\n".join(parts) + "\n" + END + rest.partition(END)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not options.write:
        for split in options.split:
            measure(split, options)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
