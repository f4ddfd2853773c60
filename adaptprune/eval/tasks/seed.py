"""SEED-Bench (arXiv 2307.16125): multiple choice in twelve dimensions, nine about pictures and three about videos.

LLaVA-1.5 asks about a video's middle frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import LETTER, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, load_json, parquet
from adaptprune.eval.submission import JsonLines
from adaptprune.eval.task import Item

DIMENSIONS = (
    "Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting",
    "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding", "Action Recognition",
    "Action Prediction", "Procedure Understanding",
)  # fmt: skip


class SEEDBench(Benchmark):
    """Headline: accuracy over all questions; also by dimension, pictures and videos."""

    name = "seed"
    title = "SEED-Bench"
    folders: ClassVar[tuple[str, ...]] = ("seed_bench",)
    metric = "accuracy; by dimension, and over pictures and videos apart"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            19242,
            {
                "llava-seed-bench.jsonl": "LLaVA's question file (in its eval.zip)",
                "SEED-Bench.json": "SEED-Bench's annotation file",
                "SEED-Bench-image": "SEED-Bench's folder of pictures",
                "SEED-Bench-video-image": "the folder of the videos' middle frames",
            },
        )
    }
    parquet = "test"

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._row)
        annotations = load_json(self.path("SEED-Bench.json"))
        names = {number: name for name, number in annotations["question_type"].items()}
        truth = {str(found["question_id"]): found for found in annotations["questions"]}
        return build(jsonl(self.path("llava-seed-bench.jsonl")), partial(self._line, names, truth))

    def _line(self, names: dict[int, str], truth: dict[str, Any], place: str, row: dict[str, Any]) -> Item:
        question_id, text = text_of(row, "question_id", "text")
        image, opened = pictures.of_row(self.root, row)
        if question_id not in truth:
            raise ValueError(f"SEED-Bench.json has no question {question_id}")
        found = truth[question_id]
        dimension = names.get(found["question_type_id"], str(found["question_type_id"]))
        return self._item(found, image, opened, text, dimension)

    def _row(self, place: str, row: dict[str, Any]) -> Item:
        question_id, question = text_of(row, "question_id", "question")
        options = "".join(f"\n{letter}. {row[f'choice_{letter.lower()}']}" for letter in "ABCD")
        frames = row["image"] if isinstance(row["image"], list) else [row["image"]]
        opened = pictures.from_parquet(frames[len(frames) // 2], question_id)
        number = int(row["question_type_id"])
        dimension = DIMENSIONS[number - 1] if 1 <= number <= len(DIMENSIONS) else str(number)
        return self._item(row, str(row.get("data_id", question_id)), opened, question + options + LETTER, dimension)

    def _item(self, found: dict[str, Any], picture: str, opened: Any, prompt: str, dimension: str) -> Item:
        name, answer, source = text_of(found, "question_id", "answer", "data_type")
        return Item(
            name, picture, opened, prompt, answer, dimension, frozenset({source}), question_id=found["question_id"]
        )

    def groups(self, item: Item) -> tuple[str, ...]:
        return (item.kind, *item.marks)

    def score(self, item: Item, answer: str) -> float:
        return float(answer == item.expected)

    def submission(self, folder: Path, column: str) -> JsonLines:
        """What the leaderboard takes."""
        return JsonLines(
            folder / f"{column}.jsonl", lambda item, answer: {"question_id": item.question_id, "prediction": answer}
        )
