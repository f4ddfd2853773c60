"""A task whose questions do what a test wants of them, and answers as a run leaves them."""

from __future__ import annotations

import json

from PIL import Image

from adaptprune.eval import api
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.task import Item, Task
from tests.benchmarks import lines

ROWS = [{"question_id": i, "image": f"{i}.jpg", "text": "Ist die Straße rot?"} for i in range(12)]
PLAIN = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False)
WANTED = [Column(UNPRUNED), Column("fastv", 0.1)]


def picture():
    return [Image.new("RGB", (96, 96), "red")]


class Plain(Task):
    """As many questions about one picture as there are names; what is not good about each is up to the tests."""

    name = "plain"
    max_new_tokens = 2

    def __init__(self, *names: str, images=picture, **changes: object) -> None:
        self.names, self.images, self.changes = names, images, changes

    def items(self):
        return [Item(name, f"p{name}", self._opener(name), "Is it red?", "yes", "k", **self.changes)
                for name in self.names]  # fmt: skip

    def _opener(self, name):
        return lambda: self.images(name) if self.images is not picture else picture()

    def score(self, item, answer):
        return float(answer == "yes")

    def settings(self):
        return {}


def run(task, out, pocket, **options):
    options = {"batch_size": 4, "examples": 0, "model": pocket, **options}
    return api.evaluate(task, WANTED, out, **options)


def why(result):
    return {problem["id"]: problem["why"] for problem in result.summary.problems}


class Counting:
    """An official metric that is the number of answers, and cannot take some of them."""

    def __init__(self, bad):
        self.bad, self.count = bad, 0

    def add(self, item, answer):
        if (item.id, answer) in self.bad:
            raise TypeError("what is that?")
        self.count += 1

    def result(self):
        return {"count": float(self.count)}


def answered(folder, **columns):
    """Answer files as a run leaves them: by column, {id: answer}, or None in place of an answer that failed."""
    for name, answers in columns.items():
        rows = [{"id": i, "answer": a or "", "score": None if a is None else 1.0, "kept": 1,
                 **({"error": "broken"} if a is None else {})} for i, a in answers.items()]  # fmt: skip
        lines(folder / f"{name}.jsonl", rows)
    return {UNPRUNED: folder / "unpruned.jsonl", "fastv@0.1": folder / "fastv.jsonl"}
