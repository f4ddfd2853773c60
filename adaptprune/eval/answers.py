"""The answers of one column in a file, a line per question, that a killed run continues from.

Whole batches are added; what a kill left of the next one is cut off when the file is opened again. Lines are
``{"id", "answer", "score", "kept"}``; for a question that could not be asked they have ``"error"``, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptprune.disk import writing
from adaptprune.errors import AdaptPruneError, reason
from adaptprune.eval.task import Item, Task

FIELDS = {"id", "answer", "score", "kept"}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file, up to the first that is not whole."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for raw in file:
            line = _parse(raw)
            if line is None:
                return
            yield line


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and set(line) >= FIELDS else None


def failed(name: str, why: str) -> dict[str, Any]:
    """The line of a question that could not be asked."""
    return {"id": name, "answer": "", "score": None, "kept": 0, "error": why}


def scored(task: Task, item: Item, answer: str, kept: int) -> dict[str, Any]:
    """The line of a question that was answered; one whose score cannot be worked out has failed."""
    line = {"id": item.id, "answer": answer, "score": None, "kept": kept}
    try:
        score = task.score(item, answer)
        if score is not None and not math.isfinite(score):
            raise ValueError(f"{score} is no score")
    except Exception as error:
        return {**line, "error": f"its answer cannot be scored ({reason(error)})"}
    return {**line, "score": score}


class Answers:
    """Appends whole batches to a file.

    Parameters
    ----------
    path : Path
    total : int
        How many lines the file has in the end.
    batch_size : int
    """

    def __init__(self, path: Path, total: int, batch_size: int) -> None:
        self.path = path
        self.done, size = self._whole(total, batch_size)
        if path.exists():
            with writing(path), path.open("rb+") as file:
                file.truncate(size)
        self._before = read(path)
        self._checked = 0

    def _whole(self, total: int, batch_size: int) -> tuple[int, int]:
        """Lines and bytes of the batches that are there; lines beyond `total` are none of ours."""
        count = size = done = kept = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for raw in file:
                    if count == total or _parse(raw) is None:
                        break
                    count, size = count + 1, size + len(raw)
                    if count % batch_size == 0 or count == total:
                        done, kept = count, size
        return done, kept

    def check(self, ids: Sequence[str]) -> bool:
        """Whether this batch is there already; an error if what is there are answers to other questions."""
        if self._checked + len(ids) > self.done:
            return False
        found = [line["id"] for _, line in zip(ids, self._before, strict=False)]
        if found != list(ids):
            raise AdaptPruneError(f"{str(self.path)!r} has answers to other questions: use another --out folder.")
        self._checked += len(ids)
        return True

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """One batch, in one write."""
        data = b"".join(map(_line, lines))
        with writing(self.path), self.path.open("ab") as file:
            file.write(data)


def _line(line: dict[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, in an id or an answer
        return json.dumps(line).encode() + b"\n"
