"""What a task is: questions about pictures, and how an answer is scored. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.registry import Registry

TASKS = Registry(
    "task",
    {
        "tabletop": "adaptprune.eval.tasks.tabletop:Tabletop",
        "vqav2": "adaptprune.eval.tasks.vqa:VQAv2",
        "gqa": "adaptprune.eval.tasks.gqa:GQA",
        "vizwiz": "adaptprune.eval.tasks.vqa:VizWiz",
        "scienceqa": "adaptprune.eval.tasks.scienceqa:ScienceQA",
        "textvqa": "adaptprune.eval.tasks.textvqa:TextVQA",
        "textvqa_no_ocr": "adaptprune.eval.tasks.textvqa:TextVQAWithoutOCR",
        "pope": "adaptprune.eval.tasks.pope:POPE",
        "mme": "adaptprune.eval.tasks.mme:MME",
        "mmbench": "adaptprune.eval.tasks.mmbench:MMBench",
        "mmbench_cn": "adaptprune.eval.tasks.mmbench:MMBenchCN",
        "seed": "adaptprune.eval.tasks.seed:SEEDBench",
        "llava_bench": "adaptprune.eval.tasks.judged:LLaVABench",
        "mmvet": "adaptprune.eval.tasks.judged:MMVet",
        "custom": "adaptprune.eval.tasks.custom:Custom",
    },
    group="adaptprune.tasks",
    check=lambda name, kind: _check(kind),
)


def _check(kind: Any) -> None:
    """Raise if what another package registers is no task."""
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise AdaptPruneError("it is no subclass of adaptprune.eval.task.Task")


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
        Opens the pictures; called when they are needed, in a worker thread.
    expected : Any
        What the task compares an answer with; None if only a server or a judge knows.
    kind : str
        Question type, scored on its own.
    marks : frozenset of str
        What makes the question hard.
    options : mapping of str to str
        Of a multiple-choice question: texts by letter.
    question_id : Any
        The benchmark's own id, as its files write it. Default: `id`.
    extra : mapping
        Fields that the answer's line in LLaVA's format has besides the usual six, or instead of them.
    problem : str
        Why this question cannot be asked; it is then reported and counted, and not scored.
    """

    id: str
    picture: str
    images: Callable[[], list[Image.Image]]
    prompt: str
    expected: Any
    kind: str
    marks: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    question_id: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    def open(self) -> list[Image.Image]:
        """The pictures; a `TypeError` if `images` gives anything else."""
        found = self.images()
        if not isinstance(found, list) or not all(isinstance(one, Image.Image) for one in found):
            raise TypeError(f"its pictures are a {type(found).__name__}, not a list of PIL images")
        return found


class Tally(Protocol):
    """Adds up one column's answers to the benchmark's official numbers."""

    def add(self, item: Item, answer: str) -> None:
        """One answer to a question that could be asked."""

    def result(self) -> dict[str, float]:
        """The official numbers by name, in the benchmark's own units."""


class Submission(Protocol):
    """Writes one column's answers as the file that a benchmark's server or its own scripts read."""

    def add(self, item: Item, answer: str) -> None:
        """Every question in order; the answer to one that could not be asked is empty."""

    def close(self) -> None: ...


class Task:
    """A benchmark: what a new one has to say, and defaults for the rest.

    Attributes
    ----------
    name : str
    headline : str
        The official number that the table shows; "" for the mean of the scores.
    scored_by : str
        "" if `score` does; otherwise who does ("server", "judge").
    max_new_tokens : int
    methods, keep_ratios : tuple
        The columns unless others are asked for; no methods means all there are.
    """

    name: str
    headline: str = ""
    scored_by: str = ""
    max_new_tokens: int = 32
    methods: tuple[str, ...] = ()
    keep_ratios: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05, 0.02)

    def items(self) -> Iterable[Item]:
        """All questions, in a fixed order; those about the same picture stand together. Can be asked for again."""
        raise NotImplementedError

    def score(self, item: Item, answer: str) -> float | None:
        """0 (wrong) to 1 (right); None where only a server or a judge can tell."""
        raise NotImplementedError

    def settings(self) -> dict[str, object]:
        """What decides which items there are, for the record."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What is worth saying about the items, once they have been gone through."""
        return []

    def check_extras(self) -> None:
        """An `AdaptPruneError` if a package is missing that the task's files need; called before any work."""

    def tally(self) -> Tally | None:
        """A fresh one, if the benchmark has official numbers."""
        return None

    def submission(self, folder: Path, column: str) -> Submission | None:
        """A fresh one, if the benchmark takes files; `column` is safe as a file name."""
        return None
