"""A summary as a table (Markdown, CSV) and as a picture of curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.eval.runner import UNPRUNED
from adaptprune.eval.summary import TOTAL, Row, Summary


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def header(summary: Summary, groups: Sequence[str]) -> list[str]:
    return ["method", "keep", "tokens", *groups, "of unpruned", "same answer"]


def cells(row: Row, groups: Sequence[str], intervals: bool = True) -> list[str]:
    """One line of the table; accuracies in percent, with the half-width of their interval."""
    texts = [row.column.method, f"{row.column.keep_ratio:g}", f"{row.kept:.0f}"]
    for group in groups:
        accuracy = row.cells[group].accuracy
        spread = f" ±{percent((accuracy.high - accuracy.low) / 2)}" if intervals else ""
        texts.append(percent(accuracy.value) + spread)
    relative = row.cells[TOTAL].relative
    texts.append(f"{percent(relative.value)} ({percent(relative.low)}-{percent(relative.high)})")
    return [*texts, percent(row.agreement)]


def markdown(summary: Summary, groups: Sequence[str] | None = None) -> str:
    """The table for a README: total and every question type."""
    groups = list(groups or summary.groups)
    lines = [header(summary, groups), ["---"] * (len(groups) + 5)]
    lines += [cells(row, groups, intervals=False) for row in summary.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def by_group(summary: dict[str, Any]) -> str:
    """For a few columns, from a summary as it is stored: a line for every group of questions, with intervals."""
    columns = summary["columns"]
    names = [UNPRUNED if c["method"] == UNPRUNED else f"{c['method']} {100 * c['keep_ratio']:g} %" for c in columns]
    lines = ["| questions | n | " + " | ".join(f"{name} | 95 %" for name in names) + " |"]
    lines.append("|---|---:|" + "---:|---|" * len(columns))
    for group in columns[0]["groups"]:
        found = [column["groups"][group] for column in columns]
        texts = [group.replace("_", " "), str(found[0]["questions"])]
        for cell in found:
            accuracy = cell["accuracy"]
            texts += [percent(accuracy["value"]), f"{percent(accuracy['low'])} - {percent(accuracy['high'])}"]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def table_csv(summary: Summary) -> str:
    """Every number of the table, one line per column and group."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", "tokens_kept", "group", "questions", "accuracy", "low", "high", "relative"]
    )
    for row in summary.rows:
        for group, cell in row.cells.items():
            a = cell.accuracy
            numbers = [f"{x:.6f}" for x in (a.value, a.low, a.high, cell.relative.value)]
            writer.writerow([row.column.method, row.column.keep_ratio, row.kept, group, cell.questions, *numbers])
    return out.getvalue()


def plot(summary: Summary, path: Path, title: str) -> None:
    """Accuracy against the share of visual tokens kept: one panel per group, bands are 95 % intervals."""
    try:
        import matplotlib
    except ImportError:
        raise AdaptPruneError("the curves need matplotlib: pip install 'adaptprune[eval]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(summary.groups)
    wide = 4
    high = -(-len(groups) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(3.4 * wide, 2.7 * high), squeeze=False, sharex=True)
    methods = list(dict.fromkeys(row.column.method for row in summary.rows if row.column.method != UNPRUNED))
    for axis, group in zip(axes.flat, groups, strict=False):
        base = summary.rows[0].cells[group].accuracy.value
        axis.axhline(100 * base, color="black", linewidth=1, linestyle=":", label=UNPRUNED)
        for number, method in enumerate(methods):
            rows = sorted(
                (row for row in summary.rows if row.column.method == method), key=lambda row: row.column.keep_ratio
            )
            x = [100 * row.column.keep_ratio for row in rows]
            points = [row.cells[group].accuracy for row in rows]
            colour = f"C{number}"
            axis.plot(x, [100 * p.value for p in points], marker="o", markersize=3, color=colour, label=method)
            axis.fill_between(
                x, [100 * p.low for p in points], [100 * p.high for p in points], alpha=0.12, color=colour
            )
        axis.set_xscale("log")
        ticks = sorted({100 * row.column.keep_ratio for row in summary.rows if row.column.method != UNPRUNED})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(f"{group.replace('_', ' ')} (n={summary.rows[0].cells[group].questions})", fontsize=9)
        axis.tick_params(labelsize=7, labelbottom=True)
        axis.grid(alpha=0.25)
    for axis in list(axes.flat)[len(groups) :]:
        axis.axis("off")
    figure.supxlabel("visual tokens kept, %", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=min(8, len(labels)), fontsize=8, bbox_to_anchor=(0.5, 0.97)
    )
    figure.suptitle(title, fontsize=10, y=0.995)
    figure.tight_layout(rect=(0.01, 0.01, 1, 0.93))
    figure.savefig(path, dpi=130)
    plt.close(figure)
