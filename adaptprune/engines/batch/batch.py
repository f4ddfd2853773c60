"""The running batch of one model: reads prompts one by one, then writes one token per step for all of them.

What a row computes does not depend on its neighbours: a pruned answer in a batch is the answer of the same request
alone. Used from one thread. Not here: queues, deadlines, who is told.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adaptprune.devices import handed, synchronize
from adaptprune.engines.batch.jobs import Delta, Job, Row
from adaptprune.engines.batch.reading import image_uses
from adaptprune.engines.batch.scores import TokenScores
from adaptprune.engines.batch.slots import Slots, install_masks
from adaptprune.engines.batch.vocabulary import ByteText
from adaptprune.engines.errors import EngineError
from adaptprune.errors import AdaptPruneError
from adaptprune.families import family_of
from adaptprune.hooks import prune
from adaptprune.hooks.held import bias_held, positions_held, shifts_held
from adaptprune.hooks.seams import attention, calls, parts, parts_of
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.sharing import Encoded
from adaptprune.methods import make_pruner
from adaptprune.prompts.text import Detokenizer, StopText
from adaptprune.viz import overlay, pictures_seen

#: What was written for a job, or why nothing could be.
Written = Iterator[tuple[Job, Delta | Exception]]


class BrokenOff(Exception):
    """A step failed halfway and has left rows that cannot go on; the cause says why."""


@dataclass
class Counters:
    """Totals since the start."""

    steps: int = 0
    step_rows: int = 0
    prefills: int = 0


class Batch:
    """Rows that are being written.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them. Nothing else may use the model meanwhile.
    tokenizer
        For this thread alone.
    remember : int
        Prompts whose encoded pictures are kept for others that show the same ones.

    Raises
    ------
    AdaptPruneError
        A model or an attention implementation that cannot be batched.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any, remember: int = 0) -> None:
        self.model, self.processor = model, processor
        self.rows: list[Row] = []
        self.counters = Counters()
        self._tokenizer = tokenizer
        found = parts_of(model)
        # keeps everything: for requests without pruning, whose visual tokens are reported too
        self._whole = make_pruner("random", keep_ratio=1, layer=family_of(model.config).smallest_layer(model.config))
        self._decoder, self._layers = found.decoder, len(found.layers)
        if attention.backend(found.decoder) == "flex_attention":
            raise AdaptPruneError("flex_attention cannot be batched raggedly: load the model with attention 'sdpa'.")
        self._slots = Slots(model.config, found.sources)
        self._remove_masks = install_masks(found)
        self.encoded = Encoded(model, found.base, remember) if remember else None
        self.eos = calls.ends_of(model)

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache."""
        return self._slots.nbytes

    def close(self) -> None:
        """Take the hooks off the model."""
        self.clear()
        self._remove_masks()
        if self.encoded is not None:
            self.encoded.close()

    def clear(self) -> None:
        """Drop all rows."""
        self.rows.clear()
        self._slots.clear()

    def drop(self, gone: Callable[[Row], bool]) -> None:
        """Let rows leave."""
        for place in range(len(self.rows) - 1, -1, -1):
            if gone(self.rows[place]):
                self._slots.leave(place)
                last = self.rows.pop()  # as Slots does: the last row takes the place
                if place < len(self.rows):
                    self.rows[place] = last

    def read(self, job: Job) -> Written:
        """Read a prompt, let its choices join, and write the first token of each."""
        start = time.perf_counter()
        device = self.model.device
        inputs = handed(job.inputs, self.model)
        ids = inputs["input_ids"]
        # as generate() does it; models with M-RoPE have more than one axis of positions
        positions = calls.positions_for(self.model, ids, inputs)
        cache = kv.new_cache(parts.text_config(self.model.config))
        usage = job.usage
        sizes = tuple((name, value.shape) for name, value in inputs.items() if value.is_floating_point())
        sharing = (
            self.encoded.of(job.images, sizes, **job.encoding) if self.encoded and job.images else nullcontext(float)
        )
        with sharing as encode_ms, prune(self.model, job.pruner or self._whole) as report:
            output = self.model(
                **inputs, **kv.handing(self.model, cache), position_ids=positions, use_cache=True, logits_to_keep=1
            )
            usage.encode_ms = encode_ms()
        synchronize(device)
        (sample,) = report.samples
        usage.selection_ms = report.selection_ms if job.pruner is not None else 0.0
        usage.images = image_uses(sample, job.want_kept)
        usage.kv_bytes, usage.kv_bytes_unpruned = report.kv_bytes, report.kv_bytes_unpruned
        if job.want_overlay and sample.num_visual:
            job.picture = overlay(job.images, sample, pictures_seen(self.processor, inputs, sample))
        fresh = [self._row(job, index, ids, positions[..., -1:].clone()) for index in range(job.sampling.n)]
        for row in fresh:
            self._slots.join(
                cache,
                partial(positions_held, cache),
                partial(bias_held, cache),
                shifts_held(cache, self._layers),
            )
            self.rows.append(row)
        self.counters.prefills += 1
        usage.prefill_ms = 1000 * (time.perf_counter() - start)
        return self._advance(fresh, output.logits[:, -1].float().expand(len(fresh), -1))

    def _row(self, job: Job, index: int, ids: Tensor, position: Tensor) -> Row:
        sampling, device = job.sampling, ids.device
        config = copy.deepcopy(self.model.generation_config)
        temperature = sampling.temperature
        if temperature is None:
            temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
        config.do_sample, config.num_beams, config.guidance_scale = temperature > 0, 1, None
        if config.do_sample:
            config.temperature = temperature
        for name in ("top_p", "top_k", "min_p") if config.do_sample else ():
            if getattr(sampling, name) is not None:
                setattr(config, name, getattr(sampling, name))
        if sampling.repetition_penalty is not None:
            config.repetition_penalty = sampling.repetition_penalty
        processors = calls.logits_processors(self.model, config, ids)
        grammar = job.grammar.copy() if job.grammar is not None else None
        if grammar is not None:
            processors.insert(0, grammar)  # first: the others may leave a few tokens only, and none that fits
        generator = None
        if config.do_sample:
            generator = torch.Generator(device)
            if sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed((sampling.seed + index) % 2**63)
        stops, eos, words = StopText(list(sampling.stop)), self.eos, job.vocabulary
        text: Detokenizer | ByteText = Detokenizer(self._tokenizer)
        if grammar is not None and words is not None:
            text, eos = ByteText(words), eos | frozenset(words.eos)
        scores = TokenScores(words, sampling.logprobs) if words is not None and sampling.logprobs is not None else None
        return Row(job, index, ids, position, processors, generator, text, stops, eos, grammar, scores)

    def step(self) -> Written:
        """Write one token for every row. If it fails, the rows are as they were; BrokenOff if that cannot be had."""
        rows, device = list(self.rows), self.model.device
        ids = torch.tensor([[row.tokens[-1]] for row in rows], device=device)
        positions = _side_by_side([row.position for row in rows]) + 1
        # replaced layer by layer (install_masks); in this form the model makes none of its own
        shape = (len(rows), 1) if attention.backend(self._decoder).startswith("flash") else (len(rows), 1, 1, 1)
        self._slots.begin_step()
        try:
            output = self.model(
                input_ids=ids,
                attention_mask=torch.ones(shape, dtype=torch.bool, device=device),
                position_ids=positions,
                **kv.handing(self.model, self._slots),
                use_cache=True,
            )
            scores = output.logits[:, -1].float()  # takes memory, too
        except BaseException as error:
            if self._slots.take_back() or not isinstance(error, Exception):
                raise
            raise BrokenOff from error  # whatever it was: no row can go on
        self._slots.end_step()
        for row, position in zip(rows, positions.split(1, dim=-2), strict=True):
            row.position = position
        self.counters.steps += 1
        self.counters.step_rows += len(rows)
        return self._advance(rows, scores)

    def _advance(self, rows: list[Row], scores: Tensor) -> Written:
        """Choose one token for each of `rows`, whose scores are (rows, vocabulary)."""
        best = scores.max(-1)
        greedy, broken = best.indices.tolist(), (~best.values.isfinite()).tolist()
        for place, row in enumerate(rows):
            if row.job.closed or row.job.cancelled:
                continue
            try:
                if broken[place]:
                    raise _not_a_number()
                plain = row.generator is None and not row.processors
                token = greedy[place] if plain else row.choose(scores[place : place + 1])
                delta = row.accept(token, scores[place])
            except Exception as error:  # the others have been computed already and go on
                yield row.job, error
            else:
                yield row.job, delta


def _not_a_number() -> EngineError:
    return EngineError("not_a_number", "the model computed nan instead of scores: try dtype float32 or bfloat16.")


def _side_by_side(positions: list[Tensor]) -> Tensor:
    """Positions of several rows, (..., rows, 1): some models give a prompt without pictures no axes, others several."""
    axes = max((one.shape[:-2] for one in positions), key=len)
    return torch.cat([one.expand(*axes, *one.shape[-2:]) for one in positions], dim=-2)
