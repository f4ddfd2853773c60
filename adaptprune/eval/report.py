"""A summary as a table (Markdown, CSV) and as a picture of curves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adaptprune.disk import write_whole
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.stats import Estimate
from adaptprune.eval.summary import TOTAL, Row, Summary

MOST_PANELS = 12


def percent(value: float | None) -> str:
    return f"{100 * value:.1f}" if value is not None and math.isfinite(value) else "-"


def _tokens(value: float | None) -> str:
    return f"{value:.0f}" if value is not None and math.isfinite(value) else "-"


def _cell(value: float) -> str:
    """A number of the csv file; empty if there is none."""
    return f"{value:.6f}" if math.isfinite(value) else ""


def header(summary: Summary, groups: Sequence[str]) -> list[str]:
    score = [summary.headline] if summary.headline else [f"needs a {summary.scored_by}"] if summary.scored_by else []
    speed = ["first token, ms", "tokens/s", "KV cache, MiB"] if _timed(summary) else []
    return ["method", "keep", "tokens", *score, *groups, "of unpruned", "same answer", *speed]


def cells(summary: Summary, row: Row, groups: Sequence[str], intervals: bool = True) -> list[str]:
    """One line of the table; accuracies in percent, with the half-width of their interval."""
    texts = [row.column.method, f"{row.column.keep_ratio:g}", _tokens(row.kept)]
    if summary.headline or summary.scored_by:
        texts.append("-" if row.headline is None else f"{row.headline:.1f}")
    for group in groups:
        accuracy = row.cells[group].accuracy
        known = intervals and math.isfinite(accuracy.value)
        spread = f" ±{percent((accuracy.high - accuracy.low) / 2)}" if known else ""
        texts.append(percent(accuracy.value) + spread)
    texts += [_relative(row.relative), percent(row.agreement)]
    if not _timed(summary):
        return texts
    if row.speed is None:
        return [*texts, "-", "-", "-"]
    rate = f"{row.speed.tokens_per_second:.1f}" if row.speed.tokens_per_second else "-"
    return [*texts, f"{row.speed.first_token_ms:.0f}", rate, f"{row.speed.kv_bytes / 2**20:.2f}"]


def _relative(found: Estimate | None) -> str:
    if found is None or not math.isfinite(found.value):
        return "-"
    interval = f" ({percent(found.low)}-{percent(found.high)})" if math.isfinite(found.low) else ""
    return percent(found.value) + interval


def _timed(summary: Summary) -> bool:
    return any(row.speed for row in summary.rows)


def markdown(summary: Summary, groups: Sequence[str] | None = None) -> str:
    """The table for a README: every number of the questions' total and of each type."""
    groups = list(summary.groups if groups is None else groups)
    top = header(summary, groups)
    lines = [top, ["---"] * len(top)]
    lines += [cells(summary, row, groups, intervals=False) for row in summary.rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines) + "\n"


def _escaped(text: str) -> str:
    """A cell of a Markdown table; types of questions are named by users."""
    return " ".join(text.split()).replace("|", "\\|")


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


def by_column(summary: dict[str, Any], groups: Sequence[str]) -> str:
    """For many columns, from a summary as it is stored: a line for every method and ratio, ``groups`` across."""
    columns = summary["columns"]
    lines = [" | ".join(["| method | keep", "tokens", *groups, "of unpruned", "same answer |"]).replace("_", " ")]
    lines.append("|---|" + "---:|" * (len(groups) + 4))
    for column in columns:
        relative = column["groups"][TOTAL]["relative_to_unpruned"]
        texts = [column["method"], f"{column['keep_ratio']:g}", _tokens(column["tokens_kept"])]
        texts += [percent(column["groups"][group]["accuracy"]["value"]) for group in groups]
        texts.append(f"{percent(relative['value'])} ({percent(relative['low'])} - {percent(relative['high'])})")
        lines.append("| " + " | ".join([*texts, percent(column["agreement_with_unpruned"])]) + " |")
    return "\n".join(lines) + "\n"


def ahead(summary: dict[str, Any], method: str) -> str:
    """From a summary as it is stored: by ratio, points of the total by which a method is ahead of each other one.

    A dash stands where the paired interval of the difference holds 0.
    """
    pruned = [column for column in summary["columns"] if column["method"] != UNPRUNED]
    others = list(dict.fromkeys(column["method"] for column in pruned if column["method"] != method))
    gaps = {}
    for row in summary["separations"]:
        if row["group"] == TOTAL and method in (row["better"], row["worse"]):
            sign, gap = (1, row["difference"]) if row["better"] == method else (-1, row["difference"])
            value, low, high = (percent(sign * gap[name]) for name in ("value", "low", "high"))
            other = row["worse"] if sign > 0 else row["better"]
            gaps[row["keep_ratio"], other] = f"{value} ({low} - {high})" if sign > 0 else f"{value} ({high} - {low})"
    lines = [
        "| keep | " + " | ".join(f"{method} - {other}" for other in others) + " |",
        "|---:|" + "---:|" * len(others),
    ]
    for ratio in dict.fromkeys(column["keep_ratio"] for column in pruned):
        lines.append(f"| {ratio:g} | " + " | ".join(gaps.get((ratio, other), "-") for other in others) + " |")
    return "\n".join(lines) + "\n"


def table_csv(summary: Summary) -> str:
    """Every number, one per line: means of scores with their interval and "of unpruned", then everything else."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["method", "keep_ratio", "tokens_kept", "group", "questions", "accuracy", "low", "high", "relative"]
    )
    for row in summary.rows:
        start = [row.column.method, row.column.keep_ratio, row.kept if math.isfinite(row.kept) else ""]
        for group, cell in row.cells.items():
            a = cell.accuracy
            numbers = [_cell(x) for x in (a.value, a.low, a.high, cell.relative.value)]
            writer.writerow([*start, group, cell.questions, *numbers])
        more = {f"official: {name}": value for name, value in row.metrics.items()}
        more["agreement"] = row.agreement
        if row.speed:
            more |= row.speed.to_dict()
        base = summary.rows[0].metrics
        for name, value in more.items():
            unpruned = base.get(name.removeprefix("official: "), 0.0) if name.startswith("official") else 0.0
            relative = _cell(value / unpruned) if unpruned else ""
            writer.writerow([*start, name, summary.questions, _cell(value), "", "", relative])
    return out.getvalue()


@dataclass(frozen=True)
class _Panel:
    """One small picture: a value, in percent or in the benchmark's points, for every column."""

    title: str
    values: dict[Column, Estimate]


def _panels(summary: Summary) -> list[_Panel]:
    found = []
    if summary.headline:
        values = {row.column: _point(row.headline) for row in summary.rows}
        found.append(_Panel(f"{summary.headline} (official)", values))
    for group in summary.groups:
        values = {row.column: _times_100(row.cells[group].accuracy) for row in summary.rows}
        title = f"{group.replace('_', ' ')} (n={summary.rows[0].cells[group].questions})"
        found.append(_Panel(_plain(title), values))
    if not summary.groups:
        values = {row.column: _point(100 * row.agreement) for row in summary.rows}
        found.append(_Panel(f"same answer as {UNPRUNED} (n={summary.questions})", values))
    return found[:MOST_PANELS]


def _plain(title: str) -> str:
    """Without what matplotlib would take for a formula, or cannot take at all."""
    return " ".join(title.split()).encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _point(value: float | None) -> Estimate:
    value = math.nan if value is None else value
    return Estimate(value, value, value)


def _times_100(found: Estimate) -> Estimate:
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


def plot_problem() -> str:
    """Why `plot` will not work; empty if it will."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "without curves.png, which needs matplotlib: pip install 'adaptprune[eval]'"
    return ""


def plot(summary: Summary, path: Path, title: str) -> None:
    """Score against the share of visual tokens kept: one panel per group, bands are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = _panels(summary)
    wide = min(4, len(panels))
    high = -(-len(panels) // wide)
    figure, axes = plt.subplots(
        high, wide, figsize=(max(3.4 * wide, 7.5), 2.7 * high + 0.6), squeeze=False, sharex=True
    )
    columns = [row.column for row in summary.rows]
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, columns)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    figure.supxlabel("visual tokens kept, %", fontsize=9)
    figure.supylabel("score, %" if summary.headline != "perception" else "score", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", ncols=min(2 * wide, len(labels)), fontsize=8, bbox_to_anchor=(0.5, 0.97)
    )
    figure.suptitle(_plain(title), fontsize=10, y=0.995)
    figure.tight_layout(rect=(0.01, 0.01, 1, 0.93 if high > 1 else 0.88))
    try:
        write_whole(path, partial(figure.savefig, dpi=130, format="png"))
    finally:
        plt.close(figure)


def _draw(axis: Any, panel: _Panel, columns: Sequence[Column]) -> None:
    """One panel: a line and a band per method, and the unpruned model's value across."""
    axis.axhline(panel.values[columns[0]].value, color="black", linewidth=1, linestyle=":", label=UNPRUNED)
    methods = list(dict.fromkeys(column.method for column in columns if column.method != UNPRUNED))
    for number, method in enumerate(methods):
        mine = sorted((c for c in columns if c.method == method), key=lambda column: column.keep_ratio)
        x = [100 * column.keep_ratio for column in mine]
        points = [panel.values[column] for column in mine]
        colour = f"C{number}"
        axis.plot(x, [p.value for p in points], marker="o", markersize=3, color=colour, label=method)
        axis.fill_between(x, [p.low for p in points], [p.high for p in points], alpha=0.12, color=colour)
    axis.set_xscale("log")
    ticks = sorted({100 * column.keep_ratio for column in columns if column.method != UNPRUNED})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title(panel.title, fontsize=9)
    axis.tick_params(labelsize=7, labelbottom=True)
    axis.grid(alpha=0.25)
