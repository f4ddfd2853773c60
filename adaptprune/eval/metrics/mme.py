"""MME (arXiv 2306.13394): two yes/no questions a picture; a subtask's points are accuracy plus accuracy+, in percent.

accuracy+ counts pictures with both questions right. Perception is the sum over ten subtasks (2000 at most), cognition
over four (800).
"""

from __future__ import annotations

from collections import defaultdict

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def said(answer: str) -> str:
    """ "yes", "no" or "other": what the first four letters hold."""
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


class Scores:
    """Right and wrong answers by subtask and picture."""

    def __init__(self) -> None:
        self._right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))

    def add(self, subtask: str, picture: str, right: bool) -> None:
        self._right[subtask][picture].append(right)

    def subtask(self, name: str) -> float:
        """0 to 200. A picture with one question asked (the other could not be) counts for accuracy+ by that one."""
        pictures = self._right[name].values()
        questions = [right for answers in pictures for right in answers]
        return 100 * sum(questions) / len(questions) + 100 * sum(all(a) for a in pictures) / len(pictures)

    def result(self) -> dict[str, float]:
        """Totals over the subtasks that there are answers for, then each of these."""
        points = {name: self.subtask(name) for name in (*PERCEPTION, *COGNITION) if name in self._right}
        perception = sum(points.get(name, 0.0) for name in PERCEPTION)
        cognition = sum(points.get(name, 0.0) for name in COGNITION)
        return {"perception": perception, "cognition": cognition, "total": perception + cognition, **points}
