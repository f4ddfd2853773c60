"""POPE: is an object in the picture? Three ways of choosing the objects that are not (arXiv 2305.10355).

LLaVA's question file says what is asked; the labels come from the benchmark's own ``coco/coco_pope_*.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import SHORT, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, parquet
from adaptprune.eval.metrics import yes_no
from adaptprune.eval.task import Item

CATEGORIES = ("random", "popular", "adversarial")


class POPE(Benchmark):
    """Headline: F1, averaged over the three categories."""

    name = "pope"
    title = "POPE"
    folders: ClassVar[tuple[str, ...]] = ("pope",)
    metric = "F1 averaged over three categories; accuracy, precision, recall, F1, yes-ratio of each"
    headline = "f1"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            8910,
            {
                "llava_pope_test.jsonl": "LLaVA's question file (in its eval.zip)",
                **{f"coco/coco_pope_{name}.json": f"POPE's {name} label file" for name in CATEGORIES},
                "val2014": "COCO's folder of pictures, val2014,",
            },
        )
    }
    parquet = "test"

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._row)
        labels: dict[tuple[str, ...], str] = {}
        for category in CATEGORIES:
            for found in jsonl(self.path(f"coco/coco_pope_{category}.json")):
                if not isinstance(found, Bad):
                    row = found[1]
                    labels[category, str(row.get("image")), str(row.get("text"))] = str(row.get("label"))
        return build(jsonl(self.path("llava_pope_test.jsonl")), partial(self._line, labels))

    def _line(self, labels: dict[tuple[str, ...], str], place: str, row: dict[str, Any]) -> Item:
        question_id, text, category = text_of(row, "question_id", "text", "category")
        image, opened = pictures.of_row(self.path("val2014"), row)
        label = labels.get((category, image, text.partition("\n")[0]))
        if label is None:
            raise ValueError(f"coco_pope_{category}.json has no label for this question about {image}")
        return Item(question_id, image, opened, text, label, category, question_id=row["question_id"])

    def _row(self, place: str, row: dict[str, Any]) -> Item:
        question_id, question, answer, category = text_of(row, "question_id", "question", "answer", "category")
        picture = str(row.get("image_source") or place)
        opened = pictures.from_parquet(row["image"], picture)
        prompt = question.strip() + SHORT
        return Item(f"{category}-{question_id}", picture, opened, prompt, answer.strip().lower(), category)

    def score(self, item: Item, answer: str) -> float:
        return float(yes_no.said(answer) == item.expected)

    def tally(self) -> Tally:
        return Tally()


class Tally:
    """The five numbers of each category, and their means."""

    def __init__(self) -> None:
        self._categories: dict[str, yes_no.Confusion] = {}

    def add(self, item: Item, answer: str) -> None:
        self._categories.setdefault(item.kind, yes_no.Confusion()).add(yes_no.said(answer), item.expected)

    def result(self) -> dict[str, float]:
        parts = {name: counts.result() for name, counts in sorted(self._categories.items())}
        names = next(iter(parts.values()), {})
        means = {name: sum(part[name] for part in parts.values()) / len(parts) for name in names}
        return means | {f"{group}.{name}": value for group, part in parts.items() for name, value in part.items()}
