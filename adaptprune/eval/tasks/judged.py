"""LLaVA-Bench-in-the-Wild (arXiv 2304.08485) and MM-Vet (arXiv 2308.02490): free answers, judged by a model.

A run writes the answers in the files that the judges read; it gives no score.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import JUDGE, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl
from adaptprune.eval.submission import JsonObject
from adaptprune.eval.task import Item


class _Judged(Benchmark):
    scored_by = JUDGE
    max_new_tokens = 1024
    questions: str

    def read(self) -> Iterator[Item | Bad]:
        return build(jsonl(self.path(self.questions)), self._line)

    def _line(self, place: str, row: dict[str, Any]) -> Item:
        question_id, text = text_of(row, "question_id", "text")
        image, opened = pictures.of_row(self.path("images"), row)
        category = str(row.get("category", "all"))
        return Item(question_id, image, opened, text, None, category, question_id=row["question_id"])


class LLaVABench(_Judged):
    """The judge reads the answers from the run's ``llava/<column>.jsonl``."""

    name = "llava_bench"
    title = "LLaVA-Bench-in-the-Wild"
    folders: ClassVar[tuple[str, ...]] = ("llava-bench-in-the-wild",)
    metric = "relative score by a judge model: adaptprune review"
    questions = "questions.jsonl"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            60, {"questions.jsonl": "LLaVA-Bench's question file", "images": "LLaVA-Bench's folder of pictures"}
        )
    }


class MMVet(_Judged):
    """The judge reads the answers from the run's ``submission/<column>.json``."""

    name = "mmvet"
    title = "MM-Vet"
    folders: ClassVar[tuple[str, ...]] = ("mm-vet", "mmvet")
    metric = "score from 0 to 1 by a judge model: MM-Vet's own evaluator, or adaptprune review"
    questions = "llava-mm-vet.jsonl"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            218,
            {"llava-mm-vet.jsonl": "LLaVA's question file (in its eval.zip)", "images": "MM-Vet's folder of pictures"},
        )
    }

    def submission(self, folder: Path, column: str) -> JsonObject:
        return JsonObject(folder / f"{column}.json", lambda item, answer: (f"v1_{item.question_id}", answer))
