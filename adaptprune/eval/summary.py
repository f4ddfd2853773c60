"""From answers to numbers: accuracy per question type with intervals, against the unpruned column of the same run."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.speed import Speed
from adaptprune.eval.stats import Array, Bootstrap, Estimate, estimate
from adaptprune.eval.task import Item

TOTAL = "total"
#: Random pruning at this ratio, early, has to cost this much, or the model's look-ups are over too soon to measure.
GATE_RATIO, GATE_LOSS = 0.1, 0.10
NOTHING = Estimate(np.nan, np.nan, np.nan)
MOST_PROBLEMS = 1000  # that are listed; all are counted


@dataclass(frozen=True)
class Cell:
    """One column on one group of questions; differences are against the unpruned column, on the same draws."""

    accuracy: Estimate
    relative: Estimate
    difference: Estimate
    questions: int


@dataclass(frozen=True)
class Row:
    """One column."""

    column: Column
    cells: dict[str, Cell]
    agreement: float
    kept: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    headline: float | None = None
    relative: Estimate | None = None
    speed: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        groups = {
            name: {
                "questions": cell.questions,
                "accuracy": cell.accuracy.to_dict(),
                "relative_to_unpruned": cell.relative.to_dict(),
                "difference_to_unpruned": cell.difference.to_dict(),
            }
            for name, cell in self.cells.items()
        }
        return {
            "method": self.column.method,
            "keep_ratio": self.column.keep_ratio,
            "tokens_kept": self.kept if np.isfinite(self.kept) else None,
            "agreement_with_unpruned": round(self.agreement, 6) if np.isfinite(self.agreement) else None,
            "groups": groups,
            **({"metrics": _rounded(self.metrics)} if self.metrics else {}),
            **({"speed": self.speed.to_dict()} if self.speed else {}),
        }


#: Is shown a question and its lines, one per column, if all have an answer; says what went wrong, if anything did.
Watch = Callable[[Item, Sequence[dict[str, Any]]], str]


class Summary:
    """All columns of one run. Items and answers are read once, side by side, and not kept.

    Parameters
    ----------
    items : iterable of Item
    answers : dict of str to iterable of dict
        By column name, one per item and in their order. Scores are numbers or, where nobody can tell, None.
    wanted : sequence of Column
        The first one is the unpruned model.
    watch : callable, optional
        See `Watch`; what it says makes the question one of the problems.
    max_errors : float
        The share of the questions that may fail.

    Attributes
    ----------
    questions : int
        How many were answered under every column; `problems` says which were not, and why, and they count nowhere.
        `groups` has question types that are scored.
    failed : str
        Why there are no numbers; "" if there are.
    """

    def __init__(
        self,
        items: Iterable[Item],
        answers: Mapping[str, Iterable[dict[str, Any]]],
        wanted: Sequence[Column],
        watch: Watch = lambda item, lines: "",
        max_errors: float = 1.0,
    ) -> None:
        self._seen = _Seen(wanted)
        for item, *lines in zip(items, *(answers[column.name] for column in wanted), strict=True):
            self._seen.add(item, lines, _why_failed(wanted, lines) or watch(item, lines))
        self.questions, self.problems = len(self._seen.pictures), self._seen.problems
        self.problem_count = self._seen.problem_count
        self.failed = _too_many(self.problem_count, self.questions, max_errors)
        self.headline, self.scored_by = "", ""
        self._draws: dict[tuple[str, str], Array] = {}
        self.groups = self._seen.groups()
        if self.groups:
            bootstrap = Bootstrap(self._seen.pictures)
            for column in wanted:
                scores = np.array(self._seen.scores[column])
                for name, chosen in self.groups.items():
                    self._draws[column.name, name] = bootstrap.means(scores, chosen)
        self.rows = [self._row(column) for column in wanted]

    def _row(self, column: Column) -> Row:
        if self.failed:
            cells = {name: Cell(NOTHING, NOTHING, NOTHING, int(chosen.sum())) for name, chosen in self.groups.items()}
            return Row(column, cells, np.nan, np.nan)
        cells = {}
        for name, chosen in self.groups.items():
            draws, base = self._draws[column.name, name], self._draws[UNPRUNED, name]
            with np.errstate(invalid="ignore", divide="ignore"):
                cells[name] = Cell(estimate(draws), estimate(draws / base), estimate(draws - base), int(chosen.sum()))
        asked = max(self.questions, 1)
        relative = cells[TOTAL].relative if cells else None
        return Row(column, cells, self._seen.same[column] / asked, self._seen.kept[column] / asked, relative=relative)

    def complete(
        self,
        metrics: Mapping[str, Mapping[str, float]],
        speeds: Mapping[str, Speed | None],
        headline: str,
        scored_by: str,
    ) -> None:
        """Add official numbers and times; `headline` names the number that stands for a row."""
        self.headline, self.scored_by = headline, scored_by
        if self.failed:
            return
        base = metrics.get(UNPRUNED, {}).get(headline)
        for place, row in enumerate(self.rows):
            found = metrics.get(row.column.name, {})
            value, relative = found.get(headline), row.relative
            if value is not None and base is not None:  # there is no interval for it
                relative = Estimate(value / base if base else float("nan"), float("nan"), float("nan"))
            self.rows[place] = replace(
                row, metrics=found, headline=value, relative=relative, speed=speeds.get(row.column.name)
            )

    def difference(self, one: Column, other: Column, group: str = TOTAL) -> Estimate:
        """Accuracy of one column minus that of another, on the same draws."""
        return estimate(self._draws[one.name, group] - self._draws[other.name, group])

    def separations(self) -> list[dict[str, Any]]:
        """Pairs of methods at the same ratio whose difference has an interval without 0, largest first."""
        found: list[dict[str, Any]] = []
        if self.failed:
            return found
        pruned = [row.column for row in self.rows if row.column.method != UNPRUNED]
        for one, other in itertools.combinations(pruned, 2):
            if one.keep_ratio != other.keep_ratio:
                continue
            for group in self.groups:
                gap = self.difference(one, other, group)
                if gap.low > 0 or gap.high < 0:
                    better, worse = (one, other) if gap.value > 0 else (other, one)
                    found.append(
                        {
                            "keep_ratio": one.keep_ratio,
                            "group": group,
                            "better": better.method,
                            "worse": worse.method,
                            "difference": self.difference(better, worse, group).to_dict(),
                        }
                    )
        return sorted(found, key=lambda row: -row["difference"]["value"])

    def gate(self) -> dict[str, Any]:
        """Whether the model can tell rules apart at all: the validity gate."""
        random = [
            row
            for row in self.rows
            if row.column.method.split(":")[0] == "random"
            and row.column.keep_ratio == GATE_RATIO
            and getattr(row.column.pruner(), "layer", None) == 2
        ]
        loss = -random[0].cells[TOTAL].difference.value if random and self.groups and not self.failed else None
        separated = self.separations()
        return {
            "random_loss_at_10_percent": None if loss is None else round(loss, 6),
            "required_loss": GATE_LOSS,
            "methods_separated_somewhere": bool(separated),
            "passed": bool(loss is not None and loss >= GATE_LOSS and separated),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            **({"failed": self.failed} if self.failed else {}),
            "problems": {"count": self.problem_count, "first": self.problems},
            **({"headline": self.headline} if self.headline else {}),
            **({"needs": self.scored_by} if self.scored_by else {}),
            "columns": [row.to_dict() for row in self.rows],
            "gate": self.gate(),
            "separations": _most(self.separations()),
        }


def _most(separations: list[dict[str, Any]], others: int = 50) -> list[dict[str, Any]]:
    """All of the total and the largest of the rest, largest first: a run has hundreds."""
    groups = [row for row in separations if row["group"] != TOTAL][:others]
    return [row for row in separations if row["group"] == TOTAL or row in groups]


class _Seen:
    """Counts and columns of numbers, for as many questions as there are."""

    def __init__(self, wanted: Sequence[Column]) -> None:
        self._wanted = wanted
        self._names: dict[Any, Any] = {}  # equal names are kept once
        self.pictures: list[str] = []
        self._kinds: list[tuple[str, frozenset[str]]] = []
        self.scores = {column: array("d") for column in wanted}
        self.same = dict.fromkeys(wanted, 0)
        self.kept = dict.fromkeys(wanted, 0)
        self.problems: list[dict[str, str]] = []
        self.problem_count = 0

    def add(self, item: Item, lines: Sequence[dict[str, Any]], why: str) -> None:
        if why:
            self.problem_count += 1
            if self.problem_count <= MOST_PROBLEMS:
                self.problems.append({"id": item.id, "why": why})
            return
        self.pictures.append(self._names.setdefault(item.picture, item.picture))
        kind = item.kind, item.marks
        self._kinds.append(self._names.setdefault(kind, kind))
        unpruned = lines[0]["answer"].lower()
        for column, line in zip(self._wanted, lines, strict=True):
            self.scores[column].append(np.nan if line["score"] is None else line["score"])
            self.same[column] += line["answer"].lower() == unpruned
            self.kept[column] += line["kept"]

    def groups(self) -> dict[str, Any]:
        """Which questions belong to the total, each type and each mark; nothing if nothing is scored."""
        scored = ~np.isnan(np.array(self.scores[self._wanted[0]]))
        if not scored.any():
            return {}
        kinds = list(dict.fromkeys(kind for kind, _ in self._kinds))
        marks = sorted({mark for _, found in self._kinds for mark in found})
        groups = {TOTAL: scored}
        groups |= {name: scored & np.array([kind == name for kind, _ in self._kinds]) for name in kinds}
        groups |= {name: scored & np.array([name in found for _, found in self._kinds]) for name in marks}
        return {name: chosen for name, chosen in groups.items() if chosen.any()}


def _why_failed(wanted: Sequence[Column], lines: Sequence[dict[str, Any]]) -> str:
    """What went wrong with a question, under the first column where something did; empty if nothing."""
    found = [(column, line["error"]) for column, line in zip(wanted, lines, strict=True) if "error" in line]
    if not found:
        return ""
    column, why = found[0]
    return str(why) if len(found) == len(wanted) else f"{column.name}: {why}"


def _too_many(failed: int, answered: int, share: float) -> str:
    total = failed + answered
    if not answered:
        return f"not one of {total} questions was answered: there is nothing to score"
    if failed / total <= share:
        return ""
    return (
        f"{failed} of {total} questions failed, more than --max-errors {share:g} allows: there are no scores. "
        "Put it right and use another --out folder, or repeat this with a higher --max-errors: the answers are kept"
    )


def _rounded(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 6) if np.isfinite(value) else None for name, value in numbers.items()}
