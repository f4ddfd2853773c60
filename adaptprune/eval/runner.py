"""Answers every item under every column, into a folder that a killed run continues from.

Batches are the same in every run, and a batch is written whole or not at all, so a run that was interrupted ends
with the same bytes as one that was not. Items are streamed, a few batches at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from adaptprune.checks import whole
from adaptprune.disk import make_folder
from adaptprune.eval import speed
from adaptprune.eval.ahead import Failed, ahead, batches
from adaptprune.eval.answers import Answers, failed, scored
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import Column
from adaptprune.eval.protocol import MODEL, square
from adaptprune.eval.task import Item, Task


@dataclass
class _Asked:
    """A batch's questions that can be asked: their places in the batch, and what the model is given."""

    start: int
    items: Sequence[Item]
    failed: dict[int, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    pictures: dict[str, list[Image.Image]] = field(default_factory=dict)
    encoded: dict[tuple[int, int] | None, tuple[dict[str, Any], float]] = field(default_factory=dict)


class Runner:
    """Runs one task on one loaded model.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them.
    folder : Path
        Answers go to ``answers/<column>.jsonl`` in it, times to ``speed/<column>.jsonl``.
    protocol : str
        "model" or "llava-1.5", see `adaptprune.eval.protocol`.
    workers : int
        Threads that open pictures ahead.
    progress : callable
        Is told how many answers were added.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        folder: Path,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 32,
        protocol: str = MODEL,
        workers: int = 4,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        whole("batch_size", batch_size, 1, 2**16)
        whole("max_new_tokens", max_new_tokens, 1, 2**20)
        whole("workers", workers, 1, 256)
        self.asker, self.folder = Asker(model, processor, protocol), folder
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.workers, self.progress = workers, progress

    def path(self, column: Column, kind: str = "answers") -> Path:
        return self.folder / kind / f"{column.file}.jsonl"

    @torch.inference_mode()
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
        for batch, made in ahead(groups, lambda item: item.picture, self._open, open_somewhere, self.workers):
            ids = [item.id for item in batch]
            open_columns = [column for column in wanted if not files[column].check(ids)]
            self.progress(len(batch) * (len(wanted) - len(open_columns)))
            ready = self._ready(start, batch, made)
            for column in open_columns:
                files[column].add(self._answers(task, ready, column))
                self.progress(len(batch))
            start += len(batch)
        return {column.name: self.path(column) for column in wanted}

    def _open(self, item: Item) -> list[Image.Image]:
        """In a worker thread."""
        return [square(self.asker.protocol, self.asker.processor, image) for image in item.images()]

    def _ready(self, start: int, batch: Sequence[Item], made: dict[str, list[Image.Image] | Failed]) -> _Asked:
        ready = _Asked(start, batch)
        for place, item in enumerate(batch):
            if item.picture not in made:
                continue  # the batch is answered already
            found = made[item.picture]
            why = item.problem or self._unfit(item, found)
            if why:
                ready.failed[place] = why
            elif not isinstance(found, Failed):
                ready.asked.append(place)
                ready.pictures[item.picture] = found
        return ready

    def _unfit(self, item: Item, found: list[Image.Image] | Failed) -> str:
        """Why a question cannot be asked; empty if it can."""
        if isinstance(found, Failed):
            return found.why
        return self.asker.unfit(item.prompt, len(found), self.max_new_tokens)

    def _answers(self, task: Task, ready: _Asked, column: Column) -> list[dict[str, Any]]:
        """One line per question of the batch."""
        said: dict[int, tuple[str, int]] = {}
        if ready.asked:
            size = self.asker.smaller(column)
            if size not in ready.encoded:
                asked = [ready.items[place] for place in ready.asked]
                ready.encoded[size] = self.asker.inputs(asked, ready.pictures, size)
            inputs, encode_ms = ready.encoded[size]
            texts, kept, measured = self.asker.generate(inputs, column, self.max_new_tokens)
            batch = speed.Batch(ready.start, len(ready.asked), encode_ms, *measured)
            batch.write(self.path(column, "speed"))
            said = dict(zip(ready.asked, zip(texts, kept, strict=True), strict=True))
        lines: list[dict[str, Any]] = []
        for place, item in enumerate(ready.items):
            if place in ready.failed:
                lines.append(failed(item.id, ready.failed[place]))
            else:
                answer, count = said[place]
                lines.append(scored(task, item, answer, count))
        return lines
