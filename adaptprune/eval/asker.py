"""A batch of questions to model inputs to greedy answers, under one column, with its times. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from adaptprune.errors import AdaptPruneError
from adaptprune.eval import speed
from adaptprune.eval.columns import DOWNSAMPLE, Column
from adaptprune.eval.protocol import prompt_text
from adaptprune.eval.task import Item
from adaptprune.hooks import prune
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import parts, processors
from adaptprune.methods.pool import cells
from adaptprune.pruner import budget


class Asker:
    """A loaded model, its processor, and how questions are put to it (see `adaptprune.eval.protocol`)."""

    def __init__(self, model: Any, processor: Any, protocol: str) -> None:
        self.model, self.processor, self.protocol = model, processor, protocol

    def unfit(self, prompt: str, images: int, max_new_tokens: int) -> str:
        """Why a prompt cannot be given to the model; empty if it can."""
        try:
            text = prompt_text(self.protocol, self.processor, prompt, 0)
        except AdaptPruneError as error:
            return str(error)
        limit = parts.context(self.model.config)
        if limit is None:
            return ""
        tower = self.model.config.vision_config
        tokens = (
            len(processors.tokenizer_of(self.processor)(text)["input_ids"])
            + images * (tower.image_size // tower.patch_size) ** 2
        )
        if tokens + max_new_tokens <= limit:
            return ""
        return (
            f"its prompt has about {tokens} tokens and the answer may have {max_new_tokens}: more than "
            f"the model's context of {limit}; lower --max-new-tokens"
        )

    def smaller(self, column: Column) -> tuple[int, int] | None:
        """Rows and columns of patches of the picture that the downsampling column gives the model."""
        if column.method != DOWNSAMPLE:
            return None
        tower = self.model.config.vision_config
        side = tower.image_size // tower.patch_size
        return cells(side, side, budget(column.keep_ratio, side * side))

    def inputs(
        self, items: Sequence[Item], pictures: Mapping[str, list[Image.Image]], size: tuple[int, int] | None = None
    ) -> tuple[dict[str, Any], float]:
        """Model inputs, and the milliseconds of the vision tower: images are encoded once for all columns."""
        counts = [len(pictures[item.picture]) for item in items]
        text = [
            prompt_text(self.protocol, self.processor, item.prompt, count)
            for item, count in zip(items, counts, strict=True)
        ]
        options: dict[str, Any] = {}
        if size is not None:
            patch = self.model.config.vision_config.patch_size
            pixels = {"height": size[0] * patch, "width": size[1] * patch}
            options = {"size": pixels, "crop_size": pixels}
        images = [image for item in items for image in pictures[item.picture]]
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
        order = [first.index(place) for item in items for place in places[item.picture]]
        handed = parts.handed_ahead(self.model, made["pixel_values"][first], order, **interpolate)
        return {**inputs, **handed}, 1000 * (speed.now(self.model.device) - begin)

    def generate(
        self, inputs: dict[str, Any], column: Column, max_new_tokens: int
    ) -> tuple[list[str], list[int], tuple[float, float, int, int]]:
        """Greedy answers, tokens kept, and (first token ms, total ms, new tokens, bytes of the KV cache)."""
        pruner = column.pruner()
        with prune(self.model, pruner) if pruner else nullcontext() as report:
            clock = speed.Clock(self.model.device)
            output = self.model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
                stopping_criteria=StoppingCriteriaList([clock]), return_dict_in_generate=True,
            )  # fmt: skip
            end = speed.now(self.model.device)
        prompt = inputs["input_ids"].shape[1]
        new = output.sequences[:, prompt:]
        texts = [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
        visual = (inputs["input_ids"] == parts.placeholder(self.model.config, "image")).sum(dim=1).tolist()
        kept = [sample.num_kept for sample in report.samples] if report else visual
        kv_bytes = report.kv_bytes if report else kv.nbytes(kv.cache_of(output), prompt)
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
