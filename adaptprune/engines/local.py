"""Answers with a model in this process. What was read for earlier questions stays in the KV cache, not read again.

The conversation is written out anew for every question and compared with the tokens that the cache holds; reading goes
on where they part. So it does not matter whether the chat template repeats an answer token by token.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from adaptprune.devices import handed
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.protocol import KEPT_CACHE, PICTURES, Answer, Pruning, never, quiet
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError, CannotReselect
from adaptprune.families import family_of
from adaptprune.hooks import PruneHandle, prune
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import calls, parts, processors
from adaptprune.prompts import Prompter, Turn, images_of
from adaptprune.pruner import Pruner
from adaptprune.viz import heat, overlay, pictures_seen

DEFAULT = "adaptprune"


class LocalEngine:
    """A model, its processor and the cache of one conversation.

    Parameters
    ----------
    model, processor
        As `adaptprune.load` gives them. Nothing else may use the model meanwhile.
    limits : EngineLimits, optional
        Their numbers of tokens; a single conversation has no queue.
    protocol : str
        How prompts are written, see `adaptprune.prompts.formats`.
    explain : bool
        Whether answers are to tell how their rule ranked every token (`Answer.heat`).
    """

    capabilities = frozenset({KEPT_CACHE, PICTURES})

    def __init__(
        self,
        model: Any,
        processor: Any,
        limits: EngineLimits | None = None,
        protocol: str = "model",
        explain: bool = False,
    ) -> None:
        self.model, self.processor = model, processor
        self.name = str(model.config.name_or_path)
        self._limits = limits or EngineLimits(max_tokens=2**31, default_tokens=512)
        self._explain = explain
        self._family = family_of(model.config)
        self._prompter = Prompter(processor, model, protocol)
        self._handle: PruneHandle | None = None
        self._pruned_as: tuple[str, bool] | None = None  # the rule, and whether it chooses anew at every question
        self._anew = False  # the model has to read anew to choose anew
        self.reset()

    def check(self, pruning: Pruning) -> None:
        pruning.check()
        pruner = pruning.pruner(DEFAULT)
        if pruner is None:
            return
        if self._pruned_as != (pruner.spec(), pruning.reselect):
            self._anew = False  # another rule may look at what can be remembered
            self._prune(pruner, pruning.reselect)

    def reset(self) -> None:
        self._cache: Any = kv.new_cache(parts.text_config(self.model.config))
        self._held: list[int] = []  # token ids in the cache
        self._images: list[Hashable] = []  # what `_look` says of those that were read into it
        self._visual_end = 0  # the place behind their last token

    def close(self) -> None:
        self._unprune()
        self.reset()

    @torch.inference_mode()
    def ask(
        self,
        turns: Sequence[Turn],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        *,
        on_text: Callable[[str], None] = quiet,
        stopping: Callable[[], bool] = never,
    ) -> Answer:
        sampling, pruning = sampling or Sampling(), pruning or Pruning()
        options = sampling_options(sampling)
        self._prepare(pruning)
        try:
            return self._answer(turns, sampling, options, pruning.reselect, on_text, stopping)
        except CannotReselect:  # found out by the first prompt, of which nothing has been said yet
            assert self._handle is not None
            self._anew = True
            self._prune(self._handle.pruner, pruning.reselect)
            return self._answer(turns, sampling, options, pruning.reselect, on_text, stopping)

    def _answer(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        options: dict[str, Any],
        reselect: bool,
        on_text: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> Answer:
        images = images_of(turns)
        looks = [_look(image) for image in images]
        full = self._inputs(turns)
        ids = full["input_ids"]
        room = self._limits.room(ids.shape[1], parts.context(self.model.config), sampling)
        common, inputs = self._continued(full, images, looks)
        fresh = images[len(self._images) :]
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        tokenizer = processors.tokenizer_of(self.processor)
        ends = calls.ends_of(self.model)
        stream = Stream(tokenizer, on_text, ends)
        start = time.perf_counter()
        try:
            output = self.model.generate(
                **inputs,
                **kv.handing(self.model, self._cache),
                streamer=stream,
                stopping_criteria=StoppingCriteriaList([_Stop(stopping)]),
                max_new_tokens=room,
                **options,
            )
        except BaseException:
            self.reset()  # some layers may have read what others have not
            raise
        end = time.perf_counter()
        self._held = output[0, : kv.seen(self._cache)].tolist()
        self._images, self._visual_end = looks, self._end_of_images(ids[0].tolist())
        new = output[0, ids.shape[1] :]
        ended = int(new[-1]) in ends
        answer = Answer(
            tokenizer.decode(new[: len(new) - ended], skip_special_tokens=True).strip(),
            "stopped" if stopping() and not ended else "length" if len(new) == room and not ended else "stop",
            ids.shape[1],
            ids.shape[1] - common,
            len(new),
            1000 * (stream.arrivals[0] - start),
            1000 * (end - start),
        )
        self._tell_pruning(answer, full, images if reselect or not common else fresh)
        return answer

    def _tell_pruning(self, answer: Answer, full: dict[str, Tensor], images: list[Image.Image]) -> None:
        """Add what was kept for this question; nothing if no visual token was up for choice."""
        report = self._handle.report if self._handle is not None else None
        if report is None:
            return
        answer.report = replace(report)  # the next question fills the hooks' own anew
        if not report.samples or not report.num_visual:
            return
        sample = answer.report.samples[0]
        answer.method, answer.visual_tokens, answer.visual_tokens_kept = (
            report.method,
            report.num_visual,
            report.num_kept,
        )
        answer.kv_bytes = report.kv_bytes
        answer.draw = lambda: overlay(images, sample, pictures_seen(self.processor, full, sample))
        answer.draw_scores = lambda: heat(images, sample, pictures_seen(self.processor, full, sample))

    # -- pruning ------------------------------------------------------------------------------------------------------

    def _prepare(self, pruning: Pruning) -> None:
        """Put the right hooks on the model; a cache that was pruned otherwise is given up."""
        self.check(pruning)
        if pruning.pruner(DEFAULT) is None and self._handle is not None:
            self._unprune()
            self.reset()

    def _prune(self, pruner: Pruner, reselect: bool) -> None:
        before, was = self._handle, self._pruned_as
        self._unprune()
        try:
            self._handle = self._pruned(pruner, reselect)
        except AdaptPruneError:
            if before is not None and was is not None:
                self._handle, self._pruned_as = self._pruned(before.pruner, was[1]), was
            raise
        self._pruned_as = (pruner.spec(), reselect)
        self.reset()

    def _pruned(self, pruner: Pruner, reselect: bool) -> PruneHandle:
        """Put hooks on. Where nothing can be chosen anew over a kept cache, it is done by reading anew."""
        if reselect and not self._anew:
            try:
                return prune(self.model, pruner, reselect=True, explain=self._explain)
            except CannotReselect:
                self._anew = True
        return prune(self.model, pruner, explain=self._explain)

    def _unprune(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._pruned_as = None

    # -- the conversation and the cache -------------------------------------------------------------------------------

    def _inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        return handed(self._prompter.inputs(turns), self.model)

    def _keep_common(self, ids: list[int], looks: list[Hashable]) -> int:
        """Cut the cache down to what it has in common with a prompt; how many tokens that are."""
        known = len(self._images)
        same = self._images == looks[:known]
        reads_anew = self._anew and self._pruned_as is not None and self._pruned_as[1]
        if not same or reads_anew or not self._family.causal:
            self.reset()
        common = 0
        for one, other in zip(self._held, ids[:-1], strict=False):  # the last token has to be read, to be answered
            if one != other:
                break
            common += 1
        if common == len(self._held):
            return common
        try:
            if self._visual_end > common:
                raise ValueError("images would be cut")
            self._cache.crop(common - len(self._held))
        except (ValueError, RuntimeError):  # RuntimeError: a sliding window has moved on
            self.reset()
            return 0
        self._held = self._held[:common]
        return common

    def _end_of_images(self, ids: list[int]) -> int:
        """The place behind the last visual token of a prompt (a model may write such tokens in its answer, too)."""
        token = parts.placeholder(self.model.config, "image")
        return next((place + 1 for place in range(len(ids) - 1, -1, -1) if ids[place] == token), 0)

    def _continued(
        self, full: dict[str, Tensor], images: list[Image.Image], looks: list[Hashable]
    ) -> tuple[int, dict[str, Tensor]]:
        """How many tokens the cache has in common with a prompt, and generate()'s arguments: all tokens, and only the
        pictures that it has not read.
        """
        ids = full["input_ids"]
        common = self._keep_common(ids[0].tolist(), looks)
        if not common:
            return 0, full
        fresh = images[len(self._images) :]
        pictures = self._inputs([Turn("user", fresh)]) if fresh else {}
        if fresh and self._visual(pictures["input_ids"]) != self._visual(ids[:, common:]):
            self.reset()  # beside others, pictures are read otherwise than alone
            return 0, full
        length = ids.shape[1]
        positions = calls.positions_for(self.model, ids, full)
        inputs = {name: value for name, value in full.items() if value.shape[:2] == (1, length)}
        inputs["position_ids"] = positions
        if fresh:
            shape = pictures["input_ids"].shape
            inputs.update({name: value for name, value in pictures.items() if value.shape[:2] != shape})
        return common, calls.continued(inputs, common)

    def _visual(self, ids: Tensor) -> int:
        """How many tokens of pictures these are."""
        return ids[0].tolist().count(parts.placeholder(self.model.config, "image"))


def _look(image: Image.Image) -> Hashable:
    """The same for pictures that look alike; another for one that was drawn on meanwhile."""
    return image.mode, image.size, hashlib.blake2b(image.tobytes()).digest(), tuple(image.getpalette() or ())


class _Stop(StoppingCriteria):
    """Ends the answer between two tokens, so that the cache stays whole."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._stopping(), dtype=torch.bool, device=input_ids.device)


class Stream(TextStreamer):
    """Passes text on as it is finished, and notes when tokens arrive."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], ends: frozenset[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text, self._ends = on_text, ends
        self.arrivals: list[float] = []

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.arrivals.append(time.perf_counter())
            if int(value) in self._ends:  # some checkpoints end with an ordinary word
                return
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


def sampling_options(sampling: Sampling) -> dict[str, Any]:
    """Options of generate() but for the length, checked.

    Raises
    ------
    AdaptPruneError
        A number out of range, or what generate() does not do with one conversation.
    """
    why = "a single conversation has one answer, plain text to its end"
    sampling.leave_out(("n", "stop", "ignore_eos", "logprobs", "schema"), why)
    sampling.check()
    # whatever the checkpoint says: the answer is streamed, and the cache kept
    options: dict[str, Any] = {"num_beams": 1, "use_cache": True}
    if sampling.temperature is not None:
        options["do_sample"] = sampling.temperature > 0
    if sampling.temperature:
        options["temperature"] = sampling.temperature
    drawn = ("top_p", "top_k", "min_p") if sampling.temperature != 0 else ()
    given = {name: getattr(sampling, name) for name in (*drawn, "repetition_penalty")}
    return options | {name: value for name, value in given.items() if value is not None}
