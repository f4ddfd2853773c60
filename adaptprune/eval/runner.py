"""Answers every item under every column, into a folder that a killed run continues from.

Batches are the same in every run, and a batch is written whole or not at all, so a run that was interrupted ends
with the same bytes as one that was not. Items are streamed, a few batches at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from adaptprune.checks import whole
from adaptprune.disk import make_folder
from adaptprune.engines.errors import EngineError
from adaptprune.eval.ahead import Failed, ahead, batches
from adaptprune.eval.answers import Answers, failed, scored
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import Column
from adaptprune.eval.task import Item, Task


@dataclass
class _Asked:
    """A batch's questions that can be asked: their places in the batch, and what the model is given."""

    start: int
    items: Sequence[Item]
    failed: dict[int, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)


class Runner:
    """Runs one task on one loaded model.

    Parameters
    ----------
    asker : Asker
        As many questions as it asks at once are a batch.
    folder : Path
        Answers go to ``answers/<column>.jsonl`` in it, times to ``speed/<column>.jsonl``.
    workers : int
        Threads that open pictures ahead.
    progress : callable
        Is told how many answers were added.
    """

    def __init__(
        self,
        asker: Asker,
        folder: Path,
        *,
        max_new_tokens: int = 32,
        workers: int = 4,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        whole("max_new_tokens", max_new_tokens, 1, 2**20)
        whole("workers", workers, 1, 256)
        self.asker, self.folder = asker, folder
        self.batch_size, self.max_new_tokens = asker.batch_size, max_new_tokens
        self.workers, self.progress = workers, progress

    def path(self, column: Column, kind: str = "answers") -> Path:
        return self.folder / kind / f"{column.file}.jsonl"

    def run(self, task: Task, wanted: Sequence[Column], total: int | None = None) -> dict[str, Path]:
        """Answer everything that is not answered yet; the files by column name. `total` spares counting the items."""
        for kind in ("answers", "speed"):
            make_folder(self.folder / kind)
        total = sum(1 for _ in task.items()) if total is None else total
        files = {column: Answers(self.path(column), total, self.batch_size) for column in wanted}
        least = min(answers.done for answers in files.values())
        place = 0

        def open_somewhere(batch: Sequence[Item]) -> bool:
            nonlocal place
            place += len(batch)
            return place > least

        start = 0
        groups = batches(task.items(), self.batch_size)
        for batch, made in ahead(groups, lambda item: item.picture, Item.open, open_somewhere, self.workers):
            ids = [item.id for item in batch]
            open_columns = [column for column in wanted if not files[column].check(ids)]
            self.progress(len(batch) * (len(wanted) - len(open_columns)))
            ready = self._ready(start, batch, made)
            for column in open_columns:
                files[column].add(self._answers(task, ready, column))
                self.progress(len(batch))
            self.asker.forget()
            start += len(batch)
        return {column.name: self.path(column) for column in wanted}

    def _ready(self, start: int, batch: Sequence[Item], made: dict[str, list[Image.Image] | Failed]) -> _Asked:
        ready = _Asked(start, batch)
        for place, item in enumerate(batch):
            if item.picture not in made:
                continue  # the batch is answered already
            found = made[item.picture]
            if item.problem or isinstance(found, Failed):
                ready.failed[place] = item.problem or found.why  # type: ignore[union-attr]
            else:
                ready.asked.append(place)
                ready.pictures[item.picture] = found
        return ready

    def _answers(self, task: Task, ready: _Asked, column: Column) -> list[dict[str, Any]]:
        """One line per question of the batch."""
        failures, said = dict(ready.failed), {}
        if ready.asked:
            items = [ready.items[place] for place in ready.asked]
            answers, times = self.asker.ask(items, ready.pictures, column, self.max_new_tokens, ready.start)
            for place, answer in zip(ready.asked, answers, strict=True):
                if isinstance(answer, EngineError):
                    failures[place] = answer.message
                else:
                    said[place] = answer
            if times is not None:
                times.write(self.path(column, "speed"))
        return [
            failed(item.id, failures[place])
            if place in failures
            else scored(task, item, said[place].text, said[place].visual_tokens_kept or 0)
            for place, item in enumerate(ready.items)
        ]
