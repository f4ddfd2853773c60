"""MME: fourteen subtasks of yes/no questions, two about each picture (arXiv 2306.13394).

LLaVA's question file says what is asked; the labels come from the text files beside the benchmark's pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import SHORT, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, parquet
from adaptprune.eval.metrics import mme
from adaptprune.eval.sources import Source
from adaptprune.eval.task import Item

RELEASE = "MME_Benchmark_release_version"
HOW_TO_ANSWER = "Please answer yes or no."


class MME(Benchmark):
    """Headline: perception, in points of 2000."""

    name = "mme"
    title = "MME"
    folders: ClassVar[tuple[str, ...]] = ("MME",)
    metric = "accuracy + accuracy+ summed over subtasks: perception (of 2000), cognition (of 800)"
    headline = "perception"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            2374,
            {
                "llava_mme.jsonl": "LLaVA's question file (in its eval.zip)",
                RELEASE: "MME's folder of pictures and labels",
            },
        )
    }
    parquet = "test"

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._row)
        labels: dict[Path, dict[str, str]] = {}
        return build(jsonl(self.path("llava_mme.jsonl")), partial(self._line, labels))

    def _line(self, labels: dict[Path, dict[str, str]], place: str, row: dict[str, Any]) -> Item:
        question_id, text, category = text_of(row, "question_id", "text", "category")
        image, opened = pictures.of_row(self.path(RELEASE), row)
        asked = text.replace(SHORT.strip(), "").replace(HOW_TO_ANSWER, "").strip()
        file = self._label_file(category, image)
        if file not in labels:
            labels.clear()  # questions about one picture stand together
            labels[file] = _labels(file)
        if asked not in labels[file]:
            raise ValueError(f"{file.name} of {category} has no answer to {asked!r}")
        return self._item(
            f"{question_id}: {asked}", image, opened, text,
            labels[file][asked], category, question_id=row["question_id"],
        )  # fmt: skip

    def _label_file(self, category: str, image: str) -> Path:
        """Four subtasks keep pictures and labels in two folders, the others in one."""
        folder = self.path(RELEASE) / pictures.inside(self.path(RELEASE), category)
        apart = folder / "questions_answers_YN"
        return (apart if apart.is_dir() else folder) / f"{Path(image).stem}.txt"

    def _row(self, place: str, row: dict[str, Any]) -> Item:
        question_id, question, answer, category = text_of(row, "question_id", "question", "answer", "category")
        asked = question.replace(HOW_TO_ANSWER, "").strip()
        picture = f"{category}/{question_id}"
        opened = pictures.from_parquet(row["image"], picture)
        return self._item(
            f"{picture}: {asked}", picture, opened, asked + SHORT, answer, category, question_id=question_id
        )

    def _item(self, name: str, picture: str, opened: Any, prompt: str, answer: str, category: str, **more: Any) -> Item:
        label = answer.strip().rstrip(".").lower()
        if label not in ("yes", "no"):
            raise ValueError(f"its answer is {answer!r}, not yes or no")
        area = "perception" if category in mme.PERCEPTION else "cognition"
        if category not in (*mme.PERCEPTION, *mme.COGNITION):
            raise ValueError(f"MME has no subtask {category!r}")
        return Item(name, picture, opened, prompt, label, category, frozenset({area}), **more)

    def score(self, item: Item, answer: str) -> float:
        return float(mme.said(answer) == item.expected)

    def tally(self) -> Tally:
        return Tally()


class Tally:
    """Points by subtask and area."""

    def __init__(self) -> None:
        self._scores = mme.Scores()

    def add(self, item: Item, answer: str) -> None:
        self._scores.add(item.kind, item.picture, mme.said(answer) == item.expected)

    def result(self) -> dict[str, float]:
        return self._scores.result()


def _labels(file: Path) -> dict[str, str]:
    """The answer to each question of a picture: a question, a tab and the answer on a line."""
    if not file.exists():
        raise ValueError(f"there is no label file {str(file)!r}")
    with Source(file, "a text file of labels") as source:
        text = source.whole().decode()
    pairs = [line.strip().split("\t") for line in text.splitlines() if line.strip()]
    return {pair[0].replace(HOW_TO_ANSWER, "").strip(): pair[-1] for pair in pairs}
