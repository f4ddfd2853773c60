"""GQA: questions about objects and their relations, with one-word answers (arXiv 1902.09506)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, load_json
from adaptprune.eval.metrics import gqa
from adaptprune.eval.submission import JsonList
from adaptprune.eval.task import Item

ANNOTATIONS = "data/testdev_balanced_questions.json"


class GQA(Benchmark):
    """Test-dev, balanced. Also reported: open and yes/no questions, and the structural types."""

    name = "gqa"
    title = "GQA"
    folders: ClassVar[tuple[str, ...]] = ("gqa",)
    metric = "exact match after lower-casing and removing full stops at the end"
    splits: ClassVar[dict[str, Split]] = {
        "testdev_balanced": Split(
            12578,
            {
                "llava_gqa_testdev_balanced.jsonl": "LLaVA's question file (in its eval.zip)",
                ANNOTATIONS: "GQA's testdev_balanced_questions.json",
                "data/images": "GQA's folder of pictures",
            },
        )
    }

    def read(self) -> Iterator[Item | Bad]:
        truth = {
            name: (str(found.get("answer")), str(found.get("types", {}).get("structural", "")))
            for name, found in load_json(self.path(ANNOTATIONS)).items()
        }
        return build(jsonl(self.path("llava_gqa_testdev_balanced.jsonl")), partial(self._line, truth))

    def _line(self, truth: dict[str, tuple[str, str]], place: str, row: dict[str, Any]) -> Item:
        question_id, text = text_of(row, "question_id", "text")
        image, opened = pictures.of_row(self.path("data/images"), row)
        if question_id not in truth:
            raise ValueError(f"{ANNOTATIONS} has no question {question_id!r}")
        answer, structure = truth[question_id]
        kind = "open" if structure == "query" else "binary"
        marks = frozenset({structure} - {""})
        return Item(question_id, image, opened, text, answer, kind, marks, question_id=row["question_id"])

    def groups(self, item: Item) -> tuple[str, ...]:
        return (item.kind, *sorted(item.marks))

    def score(self, item: Item, answer: str) -> float:
        return gqa.accuracy(answer, item.expected)

    def submission(self, folder: Path, column: str) -> JsonList:
        """What GQA's own eval.py reads, in the form of LLaVA's convert script."""
        path = folder / column / "testdev_balanced_predictions.json"
        return JsonList(
            path, lambda item, answer: {"questionId": item.question_id, "prediction": gqa.prediction(answer)}
        )
