"""POPE (arXiv 2305.10355): is an object in the picture? Accuracy, precision, recall, F1 and how often "yes" is said.

"Yes" is the positive class. A ratio whose denominator is 0 is 0, as F1 is then.
"""

from __future__ import annotations

from collections import Counter


def said(answer: str) -> str:
    """ "no" if the first sentence has the word no or not, else "yes", as LLaVA's evaluation reads POPE's answers."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


class Confusion:
    """Counts of what was said against what is true."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, answer: str, truth: str) -> None:
        """`answer` and `truth` are "yes" or "no"."""
        self._counts[answer, truth] += 1

    def result(self) -> dict[str, float]:
        """Percent."""
        right_yes, right_no = self._counts["yes", "yes"], self._counts["no", "no"]
        wrong_yes, wrong_no = self._counts["yes", "no"], self._counts["no", "yes"]
        total = right_yes + right_no + wrong_yes + wrong_no
        precision, recall = _ratio(right_yes, right_yes + wrong_yes), _ratio(right_yes, right_yes + wrong_no)
        return {
            "accuracy": _ratio(right_yes + right_no, total),
            "precision": precision,
            "recall": recall,
            "f1": _ratio(2 * precision * recall / 100, precision + recall),
            "yes_ratio": _ratio(right_yes + wrong_yes, total),
        }


def _ratio(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
