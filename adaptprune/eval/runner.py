"""Answers every item under every column, into a folder that a killed run continues from.

A column is one method at one keep ratio. Batches are the same in every run, and a batch is written whole or not at all,
so a run that was interrupted ends with the same bytes as one that was not. Items are streamed, a few batches at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError
from adaptprune.eval import speed
from adaptprune.eval.ahead import Failed, ahead, batches
from adaptprune.eval.answers import Answers
from adaptprune.eval.protocol import MODEL, prompt_text, square
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

    @property
    def file(self) -> str:
        """The name, safe as a file's."""
        return self.name.replace("/", "_").replace(":", ",")

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
        self.model, self.processor, self.folder, self.protocol = model, processor, folder, protocol
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.workers, self.progress = workers, progress

    def path(self, column: Column, kind: str = "answers") -> Path:
        return self.folder / kind / f"{column.file}.jsonl"

    @torch.inference_mode()
    def run(self, task: Task, wanted: Sequence[Column], total: int | None = None) -> dict[str, Path]:
        """Answer everything that is not answered yet; the files by column name. `total` spares counting the items."""
        for kind in ("answers", "speed"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
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
        return [square(self.protocol, self.processor, image) for image in item.images()]

    def _ready(self, start: int, batch: Sequence[Item], made: dict[str, list[Image.Image] | Failed]) -> _Asked:
        ready = _Asked(start, batch)
        for place, item in enumerate(batch):
            if item.picture not in made:
                continue  # the batch is answered already
            found = made[item.picture]
            why = item.problem or (found.why if isinstance(found, Failed) else self._unfit(item, len(found)))
            if why:
                ready.failed[place] = why
            elif not isinstance(found, Failed):
                ready.asked.append(place)
                ready.pictures[item.picture] = found
        return ready

    def _unfit(self, item: Item, images: int) -> str:
        """Why a prompt cannot be given to the model; empty if it can."""
        try:
            text = prompt_text(self.protocol, self.processor, item.prompt, 0)
        except AdaptPruneError as error:
            return str(error)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None:
            return ""
        tower = self.model.config.vision_config
        tokens = len(self.processor.tokenizer(text)["input_ids"]) + images * (tower.image_size // tower.patch_size) ** 2
        if tokens + self.max_new_tokens <= limit:
            return ""
        return (
            f"its prompt has about {tokens} tokens and the answer may have {self.max_new_tokens}: more than "
            f"the model's context of {limit}; lower --max-new-tokens"
        )

    def _smaller(self, column: Column) -> tuple[int, int] | None:
        """Rows and columns of patches of the picture that the downsampling column gives the model."""
        if column.method != DOWNSAMPLE:
            return None
        tower = self.model.config.vision_config
        side = tower.image_size // tower.patch_size
        return cells(side, side, budget(column.keep_ratio, side * side))

    def _inputs(self, ready: _Asked, size: tuple[int, int] | None) -> tuple[dict[str, Any], float]:
        """Model inputs, and the milliseconds of the vision tower: images are encoded once for all columns."""
        items = [ready.items[place] for place in ready.asked]
        counts = [len(ready.pictures[item.picture]) for item in items]
        text = [
            prompt_text(self.protocol, self.processor, item.prompt, count)
            for item, count in zip(items, counts, strict=True)
        ]
        options: dict[str, Any] = {}
        if size is not None:
            patch = self.model.config.vision_config.patch_size
            pixels = {"height": size[0] * patch, "width": size[1] * patch}
            options = {"size": pixels, "crop_size": pixels}
        images = [image for item in items for image in ready.pictures[item.picture]]
        made = self.processor(images=images or None, text=text, padding=True, return_tensors="pt", **options)
        made = made.to(self.model.device, self.model.dtype)
        inputs = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
        if not images:
            return inputs, 0.0
        places: dict[str, list[int]] = {}  # of each picture's images among those of the whole batch
        start = 0
        for item, count in zip(items, counts, strict=True):
            places.setdefault(item.picture, list(range(start, start + count)))
            start += count
        first = [place for indices in places.values() for place in indices]
        interpolate = {"interpolate_pos_encoding": True} if size is not None else {}
        begin = speed.now(self.model.device)
        encoded = self.model.get_image_features(made["pixel_values"][first], **interpolate)
        milliseconds = 1000 * (speed.now(self.model.device) - begin)
        by_place = dict(zip(first, encoded.pooler_output, strict=True))
        features = [by_place[place] for item in items for place in places[item.picture]]
        inputs["mm_encoder_outputs"] = {"image": type(encoded)(pooler_output=features)}
        return inputs, milliseconds

    def _answers(self, task: Task, ready: _Asked, column: Column) -> list[dict[str, Any]]:
        """One line per question of the batch."""
        said: dict[int, tuple[str, int]] = {}
        if ready.asked:
            size = self._smaller(column)
            if size not in ready.encoded:
                ready.encoded[size] = self._inputs(ready, size)
            inputs, encode_ms = ready.encoded[size]
            texts, kept, measured = self._generate(inputs, column)
            batch = speed.Batch(ready.start, len(ready.asked), encode_ms, *measured)
            batch.write(self.path(column, "speed"))
            said = dict(zip(ready.asked, zip(texts, kept, strict=True), strict=True))
        lines: list[dict[str, Any]] = []
        for place, item in enumerate(ready.items):
            if place in ready.failed:
                lines.append({"id": item.id, "answer": "", "score": None, "kept": 0, "error": ready.failed[place]})
            else:
                answer, count = said[place]
                lines.append({"id": item.id, "answer": answer, "score": task.score(item, answer), "kept": count})
        return lines

    def _generate(
        self, inputs: dict[str, Any], column: Column
    ) -> tuple[list[str], list[int], tuple[float, float, int, int]]:
        """Greedy answers, tokens kept, and (first token ms, total ms, new tokens, bytes of the KV cache)."""
        pruner = column.pruner()
        with prune(self.model, pruner) if pruner else nullcontext() as report:
            clock = speed.Clock(self.model.device)
            output = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1,
                stopping_criteria=StoppingCriteriaList([clock]), return_dict_in_generate=True,
            )  # fmt: skip
            end = speed.now(self.model.device)
        prompt = inputs["input_ids"].shape[1]
        new = output.sequences[:, prompt:]
        texts = [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
        visual = (inputs["input_ids"] == self.model.config.image_token_id).sum(dim=1).tolist()
        kept = [sample.num_kept for sample in report.samples] if report else visual
        kv_bytes = report.kv_bytes if report else _prompt_bytes(output.past_key_values, prompt)
        times = 1000 * (clock.first - clock.start), 1000 * (end - clock.start)
        return texts, kept, (*times, self._count(new), kv_bytes)

    def _count(self, new: Tensor) -> int:
        """Generated tokens, up to each row's first end of text."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            return new.numel()
        ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=new.device)
        before = torch.isin(new, ends).cumsum(dim=1) == 0
        return int((before.sum(dim=1) + 1).clamp(max=new.shape[1]).sum())


def _prompt_bytes(cache: Any, prompt: int) -> int:
    """Bytes of the prompt's keys and values in a cache that has the answer's, too."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.element_size() * tensor.numel() // tensor.shape[-2] * prompt for tensor in tensors)
