"""What a task is: questions about pictures, and how an answer is scored. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from adaptprune.registry import Registry

TASKS = Registry("task", {"tabletop": "adaptprune.eval.tasks.tabletop:Tabletop"}, group="adaptprune.tasks")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes
    ----------
    id : str
        Unique within the task, the same in every run.
    picture : str
        What the pictures are called; items about the same pictures share it. Intervals are over pictures, because
        answers about one picture are not independent.
    images : callable
        Opens the pictures; called when they are needed.
    kind : str
        Question type, scored on its own.
    marks : frozenset of str
        What makes the question hard.
    """

    id: str
    picture: str
    images: Callable[[], list[Image.Image]]
    prompt: str
    expected: str
    kind: str
    marks: frozenset[str] = frozenset()


class Task(Protocol):
    """A benchmark."""

    name: str

    def items(self) -> Sequence[Item]:
        """All questions, in a fixed order; those about the same picture stand together."""

    def score(self, item: Item, answer: str) -> float:
        """0 (wrong) to 1 (right)."""

    def settings(self) -> dict[str, object]:
        """What decides which items there are, for the record."""
