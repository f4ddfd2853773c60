"""From reviews to numbers: means per category or capability, with intervals, and how many reviews failed.

As LLaVA's ``summarize_gpt_review.py`` reports a pairwise review: the mean score of either side times 10, and ours in
percent of the reference's (the mean of ours over the mean of the reference's, not a mean of quotients). As MM-Vet's
evaluator reports grades: the mean over the questions that need a capability, times 100. Unlike both, a review without a
score is counted and left out, where they take in -1 or 0.

A question counts once, with the mean over both orders or over all runs, and only if it has a score in each of them.
Intervals are the central 95 % of a bootstrap over questions, drawn with a fixed seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adaptprune.eval.stats import Array, Bootstrap, Estimate, estimate
from adaptprune.review.journal import OK, STATUSES
from adaptprune.review.load import Review, load_reviews
from adaptprune.review.pairwise import OURS_FIRST, REFERENCE_FIRST

ALL = "all"


@dataclass(frozen=True)
class Group:
    """One category, capability or combination of capabilities; "all" holds every question.

    Attributes
    ----------
    questions, failed : int
        Questions with a score, and questions with a failed review (they have none).
    values : dict of str to Estimate
        Pairwise: reference and ours (mean times 10), relative (percent). Grades: score (mean times 100).
    """

    name: str
    questions: int
    failed: int
    values: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        values = {name: value.to_dict() for name, value in self.values.items()}
        return {"name": self.name, "questions": self.questions, "failed": self.failed, **values}


@dataclass(frozen=True)
class Summary:
    """One file of reviews.

    Attributes
    ----------
    graded : bool
        True for MM-Vet's grades, False for pairwise reviews.
    groups : list of Group
        "all" first.
    variants : list of str
        The reviews that each question has: orders, or runs.
    reviews : dict of str to int
        Reviews by status: ok, api_error, unparsable.
    errors : dict of str to int
        What went wrong, most frequent first.
    open : int
        Questions that are neither scored nor failed: the run is not finished. 0 where the file does not tell.
    judges, returned : dict of str to int
        Reviews by the judge's name as asked for, and as the endpoint gave it.
    first, last : str or None
        Dates of the first and the last review.
    position_bias : float or None
        With both orders: by how much being shown first raises an answer's lead over the other, on the judge's scale.
    runs : list of float
        Grades: the total of each run, times 100.
    """

    file: Path
    graded: bool
    groups: list[Group]
    variants: list[str]
    reviews: dict[str, int]
    errors: dict[str, int]
    open: int
    judges: dict[str, int]
    returned: dict[str, int]
    first: str | None
    last: str | None
    position_bias: float | None
    runs: list[float]

    @property
    def failed(self) -> int:
        """Reviews without a score."""
        return sum(count for status, count in self.reviews.items() if status != OK)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, for JSON."""
        plain = {**vars(self), "file": str(self.file), "failed": self.failed}
        return {**plain, "groups": [group.to_dict() for group in self.groups]}


def summarize(path: Path) -> Summary:
    """Read one file of reviews; pairwise reviews written by LLaVA's scripts too.

    Raises
    ------
    AdaptPruneError
        The file is missing or holds something else; the message names the line.
    """
    reviews = load_reviews(path)
    table = _Table(reviews)
    records = [review.record for review in reviews]
    dates = sorted(record["date"] for record in records if isinstance(record.get("date"), str))
    wanted = max((r["of"] for r in records if isinstance(r.get("of"), int)), default=0)
    statuses = Counter(review.status for review in reviews)
    return Summary(
        file=path,
        graded=table.graded,
        groups=table.groups(),
        variants=table.variants,
        reviews={status: statuses[status] for status in STATUSES},
        errors=_counts(r["error"] for r in records if r.get("error")),
        open=max(0, max(wanted, len(table.questions)) - len(table.scored) - len(table.failed)),
        judges=_counts(r["judge"].get("model") for r in records if isinstance(r.get("judge"), dict)),
        returned=_counts(r["judge"].get("returned") for r in records if isinstance(r.get("judge"), dict)),
        first=dates[0] if dates else None,
        last=dates[-1] if dates else None,
        position_bias=table.position_bias(),
        runs=table.runs(),
    )


def _counts(values: Iterable[Any]) -> dict[str, int]:
    counted = Counter(str(value) for value in values if value is not None)
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


class _Table:
    """The scores of one file: ``scores`` is (questions, variants, sides), only of questions that have all variants."""

    def __init__(self, reviews: Sequence[Review]) -> None:
        self.graded = reviews[0].graded
        self.variants = sorted({review.variant for review in reviews}, key=lambda v: (v != REFERENCE_FIRST, len(v), v))
        self.questions: dict[str, dict[str, Review]] = {}
        for review in sorted(reviews, key=lambda review: review.question):  # the file's order has no say in the draws
            self.questions.setdefault(review.question, {})[review.variant] = review
        self.scored = [name for name, have in self.questions.items() if self._whole(have)]
        self.failed = [name for name, have in self.questions.items() if any(r.status != OK for r in have.values())]
        sides = 1 if self.graded else 2
        scores = [[self.questions[name][variant].scores for variant in self.variants] for name in self.scored]
        self.scores: Array = np.array(scores, dtype=np.float64).reshape(-1, len(self.variants), sides)
        self._bootstrap = Bootstrap(self.scored) if self.scored else None

    def _whole(self, have: dict[str, Review]) -> bool:
        return all(variant in have and have[variant].status == OK for variant in self.variants)

    def _groups_of(self, name: str) -> tuple[str, ...]:
        """Where a question counts: its category; or each of its capabilities, and their combination."""
        groups = next(iter(self.questions[name].values())).groups
        return (*groups, "+".join(groups)) if self.graded and len(groups) > 1 else groups

    def groups(self) -> list[Group]:
        """All, then categories by name; or capabilities, then combinations, most questions first."""
        sizes = Counter(group for name in self.questions for group in self._groups_of(name))
        order = sorted(sizes, key=lambda group: ("+" in group, -sizes[group] if self.graded else 0, group))
        return [self._group(name) for name in (ALL, *order)]

    def _group(self, group: str) -> Group:
        def within(name: str) -> bool:
            return group == ALL or group in self._groups_of(name)

        chosen = np.array([within(name) for name in self.scored], dtype=bool)
        return Group(group, int(chosen.sum()), sum(map(within, self.failed)), self._values(chosen))

    def _values(self, chosen: Any) -> dict[str, Estimate]:
        if self._bootstrap is None:
            nothing = Estimate(float("nan"), float("nan"), float("nan"))
            return dict.fromkeys(["score"] if self.graded else ["reference", "ours", "relative"], nothing)
        means = self.scores.mean(axis=1)  # (questions, sides)
        draws = [self._bootstrap.means(means[:, side], chosen) for side in range(means.shape[1])]
        if self.graded:
            made = {"score": 100 * draws[0]}
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                made = {"reference": 10 * draws[0], "ours": 10 * draws[1], "relative": 100 * draws[1] / draws[0]}
        return {name: _interval(values, int(chosen.sum())) for name, values in made.items()}

    def position_bias(self) -> float | None:
        if self.graded or self.variants != [REFERENCE_FIRST, OURS_FIRST] or not self.scored:
            return None
        lead = self.scores[:, :, 0] - self.scores[:, :, 1]  # of the reference, by order
        return round(float((lead[:, 0] - lead[:, 1]).mean() / 2), 6)

    def runs(self) -> list[float]:
        if not self.graded or not self.scored:
            return []
        return [round(float(100 * total), 6) for total in self.scores[:, :, 0].mean(axis=0)]


def _interval(draws: Array, questions: int) -> Estimate:
    """One question tells nothing about others: no interval."""
    found = estimate(draws)
    return found if questions > 1 else Estimate(found.value, float("nan"), float("nan"))
