"""MMBench and MMBench-CN (arXiv 2307.06281): multiple choice, each question once per rotation of its options.

A file without answers (the test split) is answered all the same; the run writes the table to send in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval.benchmark import LETTER, SERVER, Benchmark, Split, build, text_of
from adaptprune.eval.files import CUT, Bad, Row, parquet, tsv
from adaptprune.eval.metrics import choice
from adaptprune.eval.pictures import from_cell, from_parquet
from adaptprune.eval.submission import Sheet, workbook
from adaptprune.eval.task import Item

LETTERS = "ABCD"
ROTATION = 1_000_000  # a row's index is its question's, and this much more for each rotation
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")  # by LLaVA's convert script


class MMBench(Benchmark):
    """Headline: circular evaluation."""

    name = "mmbench"
    title = "MMBench"
    folders: ClassVar[tuple[str, ...]] = ("mmbench",)
    metric = "circular accuracy (every rotation right); also unrotated, by category and by ability"
    headline = "circular"
    what = "MMBench's tsv file"
    splits: ClassVar[dict[str, Split]] = {
        "mmbench_dev_20230712": Split(4377, {"mmbench_dev_20230712.tsv": what}),
        "mmbench_test_20230712": Split(6666, {"mmbench_test_20230712.tsv": what}),
    }
    parquet = "dev"
    ask = LETTER
    max_new_tokens = 1024

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scored_by = SERVER if "_test_" in self.split else ""

    @property
    def _file(self) -> Path:
        return self.path(f"{self.split}.tsv")

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._parquet_row)
        return build(tsv(self._file, without="image"), self._row)

    def _row(self, place: str, row: Row) -> Item:
        index = row.cells["index"]
        holder, offset = self._picture(index, row)
        opened = partial(from_cell, self._file, offset, "image", f"picture of {index}")
        return self._item(str(int(holder) % ROTATION), opened, row.cells)

    def _picture(self, index: str, row: Row) -> tuple[str, int]:
        """The row that has a row's picture, and where it starts; a cell may hold another row's index in its place."""
        offset, image, seen = row.offset, row.cells["image"], [index]
        while image.isascii() and image.isdigit() and len(image) < CUT:
            if image in seen:
                raise ValueError(
                    f"its picture is that of row {' of row '.join([*seen[1:], image])}: they go in a circle"
                )
            if image not in self._rows:
                raise ValueError(f"its picture is that of row {image}, and there is no such row")
            seen.append(image)
            offset, image = self._rows[image]
        return seen[-1], offset

    @cached_property
    def _rows(self) -> dict[str, tuple[int, str]]:
        """Where each row starts, and its picture if it is short: another row's index. Read when first needed."""
        rows: dict[str, tuple[int, str]] = {}
        for found in tsv(self._file, without="image"):
            if not isinstance(found, Bad) and {"index", "image"} <= set(found[1].cells):
                cells = found[1].cells
                image = cells["image"] if len(cells["image"]) < CUT else ""
                rows.setdefault(cells["index"], (found[1].offset, image))
        return rows

    def _parquet_row(self, place: str, row: dict[str, Any]) -> Item:
        cells = {name: "" if value is None else value for name, value in row.items()}
        cells["l2-category"] = cells.pop("L2-category", cells.get("l2-category", ""))
        picture = f"picture of {row['index']}"
        return self._item(str(int(row["index"]) % ROTATION), from_parquet(row["image"], picture), cells)

    def _item(self, picture: str, opened: Any, cells: dict[str, Any]) -> Item:
        index, question = text_of(cells, "index", "question")
        options: dict[str, str] = {}
        for letter in LETTERS:
            if _is_none(cells.get(letter)):
                break
            options[letter] = str(cells[letter])
        hint = "" if _is_none(cells.get("hint")) else f"{cells['hint']}\n"
        asked = f"{hint}{question}" + "".join(f"\n{letter}. {text}" for letter, text in options.items())
        answer = None if self.scored_by or _is_none(cells.get("answer")) else str(cells["answer"])
        if answer is None and not self.scored_by:
            raise ValueError("its answer is missing")
        extra = {
            "round_id": 0, "prompt": asked, "options": list(options.values()), "option_char": list(options),
            "cells": {name: value for name, value in cells.items() if name != "image"},
        }  # fmt: skip
        category, ability = str(cells.get("category", "")), str(cells.get("l2-category", ""))
        marks = frozenset({ability} - {""})
        return Item(
            index,
            picture,
            opened,
            asked + self.ask,
            answer,
            category,
            marks,
            options,
            question_id=int(index),
            extra=extra,
        )

    def score(self, item: Item, answer: str) -> float | None:
        """Of one rotation."""
        return None if item.expected is None else float(choice.letter(answer, item.options) == item.expected)

    def tally(self) -> Tally | None:
        return None if self.scored_by else Tally()

    def check_extras(self) -> None:
        if not self.shards:
            workbook()

    def submission(self, folder: Path, column: str) -> Sheet | None:
        if self.shards:
            return None
        header = next((list(row[1].cells) for row in tsv(self._file, without="image") if not isinstance(row, Bad)), [])
        names = [name for name in header if name not in DROPPED]
        names.insert(6, "prediction")

        def entry(item: Item, answer: str) -> list[Any]:
            cells = {**item.extra.get("cells", {}), "prediction": answer}
            return [_number(cells.get(name)) for name in names]

        return Sheet(folder / f"{column}.xlsx", names, entry)


class Tally:
    """Circular evaluation, and how many answers named no option."""

    def __init__(self) -> None:
        self._circular, self._unread = choice.Circular(), 0

    def add(self, item: Item, answer: str) -> None:
        named = choice.letter(answer, item.options)
        self._unread += named is None
        rotation, question = divmod(item.question_id, ROTATION)
        self._circular.add(question, rotation, named == item.expected, sorted({item.kind, *item.marks} - {""}))

    def result(self) -> dict[str, float]:
        return {**self._circular.result(), "answers without a letter": float(self._unread)}


class MMBenchCN(MMBench):
    """The Chinese edition, with LLaVA's Chinese instruction."""

    name = "mmbench_cn"
    title = "MMBench-CN"
    folders: ClassVar[tuple[str, ...]] = ("mmbench_cn", "mmbench")
    splits: ClassVar[dict[str, Split]] = {
        "mmbench_dev_cn_20231003": Split(4329, {"mmbench_dev_cn_20231003.tsv": MMBench.what}),
        "mmbench_test_cn_20231003": Split(6666, {"mmbench_test_cn_20231003.tsv": MMBench.what}),
    }
    ask = "\n请直接回答选项字母。"


def _is_none(value: Any) -> bool:
    """Empty cells, and what pandas and Python write for them."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in ("", "nan", "none")


def _number(value: Any) -> Any:
    """Cells as a table has them: nothing where there was nothing, whole numbers as numbers."""
    if _is_none(value):
        return None
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
