"""Summaries as rows of text: for the terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adaptprune.eval.stats import Estimate
from adaptprune.review.summary import Summary


def _value(estimate: Estimate) -> str:
    if not math.isfinite(estimate.value):
        return "-"
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} ({estimate.low:.1f}-{estimate.high:.1f})"


def header(summary: Summary) -> list[str]:
    """Names of the columns; pairwise scores in the order in which LLaVA prints them."""
    if summary.graded:
        return ["capability", "questions", "failed", "score"]
    return ["category", "questions", "failed", "relative, %", "reference", "ours"]


def cells(summary: Summary) -> list[list[str]]:
    """A row per group, values with their 95 % interval."""
    names = ["score"] if summary.graded else ["relative", "reference", "ours"]
    return [
        [group.name, str(group.questions), str(group.failed), *(_value(group.values[name]) for name in names)]
        for group in summary.groups
    ]


def notes(summary: Summary) -> list[str]:
    """Who judged and when, and what keeps the numbers from being the whole story."""
    judges = ", ".join(summary.judges) or "not recorded"
    returned = ", ".join(f"{name} ({count})" for name, count in summary.returned.items())
    when = f", {summary.first} to {summary.last}" if summary.first else ""
    lines = [f"judge {judges}{f', answered as {returned}' if returned else ''}{when}"]
    if len(summary.returned) > 1:
        lines.append("more than one model answered as the judge: the scores may not be comparable")
    if summary.failed:
        counts = ", ".join(f"{n} {status}" for status, n in summary.reviews.items() if n and status != "ok")
        most = next(iter(summary.errors.items()), None)
        detail = f"; most often: {most[0]}" if most else ""
        lines.append(f"{summary.failed} of {sum(summary.reviews.values())} reviews have no score ({counts}{detail})")
    if summary.open:
        lines.append(f"questions not reviewed yet: {summary.open}")
    if summary.position_bias is not None:
        lines.append(
            f"being shown first raises an answer's lead by {summary.position_bias:.2f} points; both orders cancel it"
        )
    if len(summary.runs) > 1:
        mean = sum(summary.runs) / len(summary.runs)
        spread = math.sqrt(sum((run - mean) ** 2 for run in summary.runs) / len(summary.runs))
        lines.append(f"{len(summary.runs)} runs: {', '.join(f'{run:.1f}' for run in summary.runs)}; std {spread:.1f}")
    return lines


def markdown(summaries: Sequence[Summary]) -> str:
    """A section per file."""
    parts = []
    for summary in summaries:
        rows = [header(summary), ["---"] * len(header(summary)), *cells(summary)]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts.append(f"**{summary.file.name}**\n\n{table}\n\n" + "\n".join(f"- {line}" for line in notes(summary)))
    return "\n\n".join(parts) + "\n"
