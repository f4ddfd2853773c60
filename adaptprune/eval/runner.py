"""Answers every item under every column, into a folder that a killed run continues from.

A column is one method at one keep ratio. Batches are the same in every run, and a batch is written whole or not at all,
so a run that was interrupted ends with the same bytes as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptprune.checks import whole
from adaptprune.engines.transformers import chat_text
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.task import Item, Task
from adaptprune.hooks import prune
from adaptprune.methods import make_pruner
from adaptprune.methods.pool import cells
from adaptprune.pruner import Pruner, budget

UNPRUNED = "unpruned"
DOWNSAMPLE = "downsample"


@dataclass(frozen=True)
class Column:
    """One method at one ratio; `method` is a spec, "unpruned", or "downsample" (a smaller picture for the model)."""

    method: str
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        return self.method if self.method == UNPRUNED else f"{self.method}@{self.keep_ratio:g}"

    def pruner(self) -> Pruner | None:
        if self.method in (UNPRUNED, DOWNSAMPLE):
            return None
        return make_pruner(self.method, keep_ratio=self.keep_ratio)


def columns(methods: Sequence[str], keep_ratios: Sequence[float]) -> list[Column]:
    """The unpruned column, then every method at every ratio; a mistake in one is found before anything runs."""
    made = [Column(UNPRUNED), *(Column(m, r) for m in methods if m != UNPRUNED for r in keep_ratios)]
    for column in made:
        column.pruner()
    if len({column.name for column in made}) < len(made):
        raise AdaptPruneError("the same method and keep_ratio is asked for twice: leave one out.")
    return made


class Runner:
    """Runs one task on one loaded model.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them.
    folder : Path
        Answers go to ``answers/<column>.jsonl`` in it, a line per item: id, answer, score, tokens kept.
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
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        whole("batch_size", batch_size, 1, 2**16)
        self.model, self.processor, self.folder = model, processor, folder
        self.batch_size, self.max_new_tokens, self.progress = batch_size, max_new_tokens, progress

    @torch.inference_mode()
    def run(self, task: Task, wanted: Sequence[Column]) -> dict[str, list[dict[str, Any]]]:
        """All answers by column name, in the order of the task's items."""
        items = task.items()
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        done = {column: self._read(column, items) for column in wanted}
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            open_columns = [column for column in wanted if len(done[column]) < start + len(batch)]
            self.progress(len(batch) * (len(wanted) - len(open_columns)))
            pictures = {item.picture: item.images() for item in batch} if open_columns else {}
            encoded: dict[tuple[int, int] | None, dict[str, Any]] = {}
            for column in open_columns:
                size = self._smaller(column)
                if size not in encoded:
                    encoded[size] = self._inputs(batch, pictures, size)
                lines = self._answers(task, batch, column, encoded[size])
                with self._path(column).open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
                done[column] += lines
                self.progress(len(batch))
        return {column.name: done[column] for column in wanted}

    def _path(self, column: Column) -> Path:
        return self.folder / "answers" / f"{column.name.replace('/', '_').replace(':', ',')}.jsonl"

    def _read(self, column: Column, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Whole batches that an earlier run wrote; what a kill left of the next one is cut off."""
        path = self._path(column)
        if not path.exists():
            return []
        lines: list[tuple[dict[str, Any], int]] = []
        for raw in path.read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                line = None
            if (
                not isinstance(line, dict)
                or not {"id", "answer", "score", "kept"} <= set(line)
                or len(lines) == len(items)
            ):
                break
            if line["id"] != items[len(lines)].id:
                raise AdaptPruneError(f"{str(path)!r} has answers to other questions: use another --out folder.")
            lines.append((line, len(raw)))
        if len(lines) < len(items):
            lines = lines[: len(lines) - len(lines) % self.batch_size]
        size = sum(length for _, length in lines)
        with path.open("rb+") as file:
            file.truncate(size)
        return [line for line, _ in lines]

    def _smaller(self, column: Column) -> tuple[int, int] | None:
        """Rows and columns of patches of the picture that the downsampling column gives the model."""
        if column.method != DOWNSAMPLE:
            return None
        tower = self.model.config.vision_config
        side = tower.image_size // tower.patch_size
        return cells(side, side, budget(column.keep_ratio, side * side))

    def _inputs(
        self, batch: Sequence[Item], pictures: dict[str, list[Any]], size: tuple[int, int] | None
    ) -> dict[str, Any]:
        """Model inputs; images are encoded once for all columns and questions about them."""
        text = [chat_text(self.processor, item.prompt, len(pictures[item.picture])) for item in batch]
        options: dict[str, Any] = {}
        if size is not None:
            patch = self.model.config.vision_config.patch_size
            pixels = {"height": size[0] * patch, "width": size[1] * patch}
            options = {"size": pixels, "crop_size": pixels}
        images = [image for item in batch for image in pictures[item.picture]]
        made = self.processor(images=images, text=text, padding=True, return_tensors="pt", **options)
        made = made.to(self.model.device, self.model.dtype)
        places: dict[str, list[int]] = {}  # of each picture's images among those of the whole batch
        start = 0
        for item in batch:
            count = len(pictures[item.picture])
            places.setdefault(item.picture, list(range(start, start + count)))
            start += count
        first = [place for indices in places.values() for place in indices]
        interpolate = {"interpolate_pos_encoding": True} if size is not None else {}
        encoded = self.model.get_image_features(made["pixel_values"][first], **interpolate)
        by_place = dict(zip(first, encoded.pooler_output, strict=True))
        features = [by_place[place] for item in batch for place in places[item.picture]]
        return {
            "input_ids": made["input_ids"],
            "attention_mask": made["attention_mask"],
            "mm_encoder_outputs": {"image": type(encoded)(pooler_output=features)},
        }

    def _answers(
        self, task: Task, batch: Sequence[Item], column: Column, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        pruner = column.pruner()
        with prune(self.model, pruner) if pruner else nullcontext() as report:
            output: Tensor = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers = self.processor.batch_decode(new, skip_special_tokens=True)
        visual = (inputs["input_ids"] == self.model.config.image_token_id).sum(dim=1).tolist()
        kept = [sample.num_kept for sample in report.samples] if report else visual
        return [
            {"id": item.id, "answer": answer.strip(), "score": task.score(item, answer), "kept": count}
            for item, answer, count in zip(batch, answers, kept, strict=True)
        ]
