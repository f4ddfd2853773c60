"""Reads files of reviews for the summary: this package's, and those of LLaVA's scripts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError
from adaptprune.review.files import raw_lines, read_line, shorten
from adaptprune.review.journal import OK, UNPARSABLE, parse_record
from adaptprune.review.pairwise import REFERENCE_FIRST


@dataclass(frozen=True)
class Review:
    """One review as the summary needs it.

    Attributes
    ----------
    scores : tuple of float
        (reference, ours), or (grade,); empty if the review failed.
    groups : tuple of str
        Category, or capabilities.
    record : dict
        The line itself.
    """

    question: str
    variant: str
    status: str
    scores: tuple[float, ...]
    groups: tuple[str, ...]
    graded: bool
    record: dict[str, Any]


def load_reviews(path: Path) -> list[Review]:
    """One review per question and variant, the last one of each; a torn last line (a run under way) is left out.

    Raises
    ------
    AdaptPruneError
        A line is no review, two good reviews are about the same question, or the file holds two kinds.
    """
    reviews: dict[tuple[str, str], Review] = {}
    for place, line in raw_lines(path):
        if not line.strip():
            continue
        try:
            review = _review(line, place)
        except AdaptPruneError:
            if not line.endswith(b"\n") and reviews:
                break
            raise
        key = review.question, review.variant
        before = reviews.get(key)
        if before and before.status == OK:
            raise AdaptPruneError(f"{place}: question {key[0]} is reviewed twice ({key[1]}): keep one of the lines.")
        reviews[key] = review
    if not reviews:
        raise AdaptPruneError(f"{str(path)!r} holds no reviews.")
    if len({review.graded for review in reviews.values()}) > 1:
        raise AdaptPruneError(f"{str(path)!r} holds pairwise reviews and grades: keep them apart.")
    return list(reviews.values())


def _review(line: bytes, place: str) -> Review:
    record = read_line(line, place)
    if "format" in record:
        record = parse_record(line, place)
    elif "question_id" not in record or not {"tuple", "score"} & set(record):
        raise AdaptPruneError(f"{place} is not a review: {shorten(str(record))}.")
    else:
        record = _from_llava(record)
    status, graded = record["status"], "capability" in record
    groups = record["capability"] if graded else [record["category"]] if "category" in record else []
    scores: tuple[float, ...] = ()
    if status == OK:
        found = [record.get("score")] if graded else record.get("tuple")
        if not isinstance(found, list) or len(found) != (1 if graded else 2) or not all(map(_is_score, found)):
            raise AdaptPruneError(f"{place}: the scores are damaged: {shorten(str(found))}.")
        scores = tuple(found)
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise AdaptPruneError(f"{place}: the category is damaged: {shorten(str(groups))}.")
    return Review(
        str(record["question_id"]), str(record["variant"]), status, scores, tuple(sorted(set(groups))), graded, record
    )


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _from_llava(record: dict[str, Any]) -> dict[str, Any]:
    """LLaVA writes [-1, -1] where a reply could not be read, and the oldest files have ``score`` for ``tuple``."""
    scores = record.get("tuple", record.get("score"))
    right = isinstance(scores, list) and len(scores) == 2 and all(_is_score(x) for x in scores)
    return {
        **record,
        "tuple": scores,
        "variant": REFERENCE_FIRST,
        "status": OK if right else UNPARSABLE,
    }
