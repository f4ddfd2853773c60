"""From answers to numbers: accuracy per question type with intervals, against the unpruned column of the same run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptprune.eval.runner import UNPRUNED, Column
from adaptprune.eval.stats import Array, Bootstrap, Estimate, estimate
from adaptprune.eval.task import Item

TOTAL = "total"
#: Random pruning at this ratio, early, has to cost this much, or the model's look-ups are over too soon to measure.
GATE_RATIO, GATE_LOSS = 0.1, 0.10


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
            "tokens_kept": self.kept,
            "agreement_with_unpruned": round(self.agreement, 6),
            "groups": groups,
        }


class Summary:
    """All columns of one run.

    Parameters
    ----------
    items : sequence of Item
    answers : dict of str to list of dict
        By column name, one per item and in their order.
    wanted : sequence of Column
        The first one is the unpruned model.
    """

    def __init__(
        self, items: Sequence[Item], answers: dict[str, list[dict[str, Any]]], wanted: Sequence[Column]
    ) -> None:
        self._bootstrap = Bootstrap([item.picture for item in items])
        kinds = list(dict.fromkeys(item.kind for item in items))
        marks = sorted({mark for item in items for mark in item.marks})
        self.groups = {TOTAL: np.ones(len(items), dtype=bool)}
        self.groups |= {kind: np.array([item.kind == kind for item in items]) for kind in kinds}
        self.groups |= {mark: np.array([mark in item.marks for item in items]) for mark in marks}
        self._draws: dict[tuple[str, str], Array] = {}
        for column in wanted:
            scores = np.array([line["score"] for line in answers[column.name]])
            for name, chosen in self.groups.items():
                self._draws[column.name, name] = self._bootstrap.means(scores, chosen)
        self.rows = [self._row(column, answers) for column in wanted]

    def _row(self, column: Column, answers: dict[str, list[dict[str, Any]]]) -> Row:
        cells = {}
        for name, chosen in self.groups.items():
            draws, base = self._draws[column.name, name], self._draws[UNPRUNED, name]
            with np.errstate(invalid="ignore", divide="ignore"):
                cells[name] = Cell(estimate(draws), estimate(draws / base), estimate(draws - base), int(chosen.sum()))
        pairs = zip(answers[column.name], answers[UNPRUNED], strict=True)
        same = [mine["answer"].lower() == theirs["answer"].lower() for mine, theirs in pairs]
        kept = [line["kept"] for line in answers[column.name]]
        return Row(column, cells, float(np.mean(same)), float(np.mean(kept)))

    def difference(self, one: Column, other: Column, group: str = TOTAL) -> Estimate:
        """Accuracy of one column minus that of another, on the same draws."""
        return estimate(self._draws[one.name, group] - self._draws[other.name, group])

    def separations(self) -> list[dict[str, Any]]:
        """Pairs of methods at the same ratio whose difference has an interval without 0, largest first."""
        found = []
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
        loss = -random[0].cells[TOTAL].difference.value if random else None
        separated = self.separations()
        return {
            "random_loss_at_10_percent": None if loss is None else round(loss, 6),
            "required_loss": GATE_LOSS,
            "methods_separated_somewhere": bool(separated),
            "passed": bool(loss is not None and loss >= GATE_LOSS and separated),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "columns": [row.to_dict() for row in self.rows],
            "gate": self.gate(),
            "separations": self.separations()[:50],
        }
