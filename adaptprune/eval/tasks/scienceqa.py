"""ScienceQA-IMG: the questions of ScienceQA's test split that have a picture (arXiv 2209.09513)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import LETTER, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, load_json, parquet
from adaptprune.eval.metrics import choice
from adaptprune.eval.task import Item

LETTERS = "ABCDE"
QUESTIONS = "llava_test_CQM-A.json"


class ScienceQA(Benchmark):
    """Headline: accuracy over the questions with a picture; also by subject, grade and kind of context."""

    name = "scienceqa"
    title = "ScienceQA-IMG"
    folders: ClassVar[tuple[str, ...]] = ("scienceqa",)
    metric = "accuracy; by subject, grade and whether there is a text besides the picture"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            2017,
            {
                QUESTIONS: "LLaVA's question file (in its eval.zip)",
                "problems.json": "ScienceQA's problems.json",
                "images/test": "ScienceQA's folder of pictures, images/test,",
            },
        )
    }
    parquet = "test"
    max_new_tokens = 1024

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._row)
        problems = load_json(self.path("problems.json"))
        asked = load_json(self.path(QUESTIONS), list)
        records = ((f"{QUESTIONS}, question {number}", row) for number, row in enumerate(asked))
        return build(records, partial(self._line, problems))

    def _line(self, problems: dict[str, Any], place: str, row: dict[str, Any]) -> Item | None:
        if "image" not in row:
            return None
        (name,) = text_of(row, "id")
        image, opened = pictures.of_row(self.path("images/test"), row)
        if name not in problems:
            raise ValueError(f"problems.json has no problem {name!r}")
        asked = row["conversations"][0]["value"].replace("<image>", "").strip()
        return self._item(name, image, opened, asked, problems[name])

    def _row(self, place: str, row: dict[str, Any]) -> Item | None:
        if row["image"] is None:
            return None
        context = f"Context: {row['hint']}\n" if row.get("hint") else ""
        options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False))
        name = place.replace(", row ", "-")  # the table has no ids
        return self._item(
            name, name, pictures.from_parquet(row["image"], place), f"{context}{row['question']}{options}", row
        )

    def _item(self, name: str, picture: str, opened: Any, asked: str, problem: dict[str, Any]) -> Item:
        options = dict(zip(LETTERS, map(str, problem["choices"]), strict=False))
        subject, grade = text_of(problem, "subject", "grade")
        groups = {f"grades {'1-6' if int(grade.removeprefix('grade')) <= 6 else '7-12'}"}
        groups.add("text and picture" if problem.get("hint") else "picture only")
        prompt = asked + LETTER
        extra = {"prompt": f"<image>\n{prompt}"}
        expected = LETTERS[problem["answer"]]
        return Item(
            name, picture, opened, prompt, expected, subject, frozenset(groups), options, question_id=name, extra=extra
        )

    def groups(self, item: Item) -> tuple[str, ...]:
        return (item.kind, *sorted(item.marks))

    def score(self, item: Item, answer: str) -> float:
        return float(choice.scienceqa_letter(answer, list(item.options)) == item.expected)
