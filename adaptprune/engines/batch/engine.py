"""The engine: one thread that answers requests with one model, many at a time.

Each prompt is read alone, under its own `adaptprune.prune`; its cache then joins the running `Batch`, which writes one
token per step for every row. Between two steps one waiting prompt is read at most, so that a new request joins without
waiting for the longest answer and running answers are held up by one prefill at most.

Not here: HTTP, images from the network, API keys. Front ends in the same process use `Engine.stream`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptprune.engines.batch.ask import ask, stream
from adaptprune.engines.batch.batch import Batch, BrokenOff, Counters, Written
from adaptprune.engines.batch.grammar import Grammars
from adaptprune.engines.batch.intake import Intake
from adaptprune.engines.batch.jobs import Event, Job
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.batch.memory import give_back
from adaptprune.engines.batch.vocabulary import Vocabulary
from adaptprune.engines.batch.watch import Watch
from adaptprune.engines.errors import EngineError, from_exception, out_of_memory, refused, shutting_down, too_late
from adaptprune.engines.protocol import BATCHING, PICTURES, Answer, Pruning, never, quiet
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.handle import check_suits
from adaptprune.hooks.seams import parts
from adaptprune.prompts import Prompter, PromptError, Turn, images_of
from adaptprune.pruner import Pruner

log = logging.getLogger(__name__)

#: Seconds without a request after which memory is handed back.
IDLE = 1.0


class Engine:
    """A model that answers requests in ragged batches.

    Parameters
    ----------
    name : str
        Under which clients ask for it.
    model, processor
        As `adaptprune.load` gives them. Nothing else may use the model while the engine runs.
    limits : EngineLimits
    pruner : Pruner or None
        For requests that do not say; None: unpruned.
    protocol : str
        How prompts are written, see `adaptprune.prompts.formats`.
    remember : int
        Prompts whose encoded pictures are kept for others that show the same objects.

    Raises
    ------
    AdaptPruneError
        A model or an attention implementation that cannot be batched.
    """

    capabilities = frozenset({BATCHING, PICTURES})

    def __init__(
        self,
        name: str,
        model: Any,
        processor: Any,
        limits: EngineLimits | None = None,
        pruner: Pruner | None = None,
        *,
        protocol: str = "model",
        remember: int = 0,
    ) -> None:
        self.name, self.model, self.processor = name, model, processor
        self.limits, self.pruner = limits or EngineLimits(), pruner
        self.prompter = Prompter(processor, model, protocol)
        self._batch = Batch(model, processor, self.prompter.tokenizer(), remember)
        self._vocabulary = Vocabulary(self.prompter.tokenizer(), self._batch.eos)
        self._grammars = Grammars(self._vocabulary)
        self.watch = Watch()
        self._intake = Intake(self.limits)
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        if pruner is not None:
            pruner.warm_up()

    # -- for front ends; any thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    @property
    def hung(self) -> bool:
        """Whether one turn of the engine's thread has been under way for longer than any should."""
        return self.watch.seconds > self.limits.hang_after

    @property
    def running(self) -> int:
        """Rows of the batch."""
        return len(self._batch.rows)

    @property
    def waiting(self) -> int:
        """Requests taken in that are not in the batch yet."""
        return max(0, self.pending - len({id(row.job) for row in list(self._batch.rows)}))

    @property
    def pending(self) -> int:
        """Requests taken in and not finished."""
        return len(self._intake.open)

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None: not limited by the model."""
        return parts.context(self.model.config)

    @property
    def counters(self) -> Counters:
        """What the batch has done so far."""
        return self._batch.counters

    @property
    def cache_bytes(self) -> int:
        """Bytes of the running batch's KV cache."""
        return self._batch.nbytes

    def open(
        self,
        sampling: Sampling,
        pruner: Pruner | None,
        on_event: Callable[[Event], None],
        *,
        timeout: float | None = None,
        want_kept: bool = False,
        want_overlay: bool = False,
    ) -> Job:
        """Take a request in: from now on it has a place, until it finishes or is cancelled.

        Raises
        ------
        EngineError
            429 if the queue is full, 503 while shutting down, 400 for what this engine cannot do.
        """
        self.limits.check(sampling)
        limit = self.limits.timeout if timeout is None else min(timeout, self.limits.timeout)
        deadline = time.monotonic() + limit
        job = Job(sampling, pruner, on_event, deadline, want_kept=want_kept, want_overlay=want_overlay)
        self._intake.add(job)
        return job

    def check(self, pruning: Pruning) -> None:
        """Raise AdaptPruneError if this model cannot be pruned so."""
        pruning.check()
        pruner = pruning.pruner(self.pruner)
        if pruner is not None:
            check_suits(self.model, pruner)

    def submit(self, job: Job, turns: Sequence[Turn]) -> None:
        """Build the model's inputs and put the request in the queue. Slow (images): not for an event loop.

        Raises
        ------
        EngineError
            The conversation does not fit the model.
        """
        self.prepare(job, turns)
        self.enqueue([job])

    def prepare(self, job: Job, turns: Sequence[Turn], make: Callable[[], dict[str, Tensor]] | None = None) -> None:
        """Build the model's inputs, as `submit`; with `make` in place of the prompter."""
        try:
            job.inputs = make() if make is not None else self.prompter.inputs(turns)
        except PromptError as error:
            raise refused(str(error), "messages", error.code) from error
        if job.sampling.logprobs is not None or job.sampling.schema is not None:
            job.vocabulary = self._vocabulary
            _ = self._vocabulary.tokens  # made here, where nobody else waits
        if job.sampling.schema is not None:
            job.grammar = self._grammars.compile(job.sampling.schema)
        job.images = images_of(turns) if job.want_overlay or self._batch.encoded is not None else []
        length = job.inputs["input_ids"].shape[1]
        job.max_tokens = self.limits.room(length, self.context, job.sampling)
        job.usage.prompt_tokens = length
        job.usage.method = job.pruner.spec() if job.pruner else None

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Put prepared requests in the queue, all at once, so that what is read when does not depend on chance."""
        self._intake.enqueue(jobs)

    def forget(self) -> None:
        """Drop the encoded pictures that are remembered; not while requests run."""
        if self._batch.encoded is not None:
            self._batch.encoded.forget()

    def cancel(self, job: Job) -> None:
        """Give a request up, wherever it is; nothing more is said about it. Harmless if it has finished."""
        self._intake.cancel(job)

    def stream(self, turns: Sequence[Turn], sampling: Sampling | None = None, **options: Any) -> Iterator[Event]:
        """Answer a conversation in this process: `Delta`s, then one `Done` or `Failed`.

        Parameters
        ----------
        turns : sequence of Turn
        sampling : Sampling, optional
        **options
            `pruner` (default: the engine's), and those of `open`.
        """
        return stream(self, turns, sampling or Sampling(), options.pop("pruner", self.pruner), **options)

    def ask(
        self,
        turns: Sequence[Turn],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        *,
        on_text: Callable[[str], None] = quiet,
        stopping: Callable[[], bool] = never,
    ) -> Answer:
        """Answer one conversation, among others; see `adaptprune.engines.protocol.Engine`."""
        pruning = pruning or Pruning()
        self.check(pruning)
        pruner = pruning.pruner(self.pruner)
        return ask(self, turns, sampling or Sampling(), pruner, on_text, stopping)

    def reset(self) -> None:
        """Nothing is kept of earlier questions but pictures."""
        self.forget()

    def close(self) -> None:
        """Stop."""
        self.stop()

    def drain(self) -> None:
        """Refuse new requests; those taken in go on."""
        self._intake.drain()

    def stop(self, timeout: float = 30.0) -> None:
        """Fail what is left with a clean error, end the thread and take the hooks off."""
        self._intake.drain(stop=True)
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._batch.close()

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        tidy = True
        while True:
            something = self._intake.wait(lambda: bool(self._batch.rows), None if tidy else IDLE)
            if self._intake.stopping:
                break
            if not something:
                give_back(self.model.device)
                tidy = True
                continue
            tidy = False
            try:
                with torch.inference_mode():
                    self._turn()
            except BaseException as error:  # a defect: everybody hears of it, and the next request finds a clean batch
                log.exception("the engine %r failed", self.name)
                self._fail_rows(from_exception((isinstance(error, BrokenOff) and error.__cause__) or error))
        for job in list(self._intake.open):
            self._intake.fail(job, shutting_down())
        self._batch.clear()

    def _turn(self) -> None:
        """Drop who left, read prompts, write one token per row."""
        self._drop_gone()
        for _ in range(self.limits.prompts_per_step):
            if not self._read_next():
                break
        if self._batch.rows:
            self._write()

    def _read_next(self) -> bool:
        """Read a prompt that waits; whether there was one."""
        job = self._intake.next(len(self._batch.rows))
        if job is not None:
            job.usage.queue_ms = job.milliseconds()
            try:
                with self.watch.over("reading a prompt"):
                    self._pass_on(self._batch.read(job))
            except Exception as error:
                if not isinstance(error, AdaptPruneError):
                    log.exception("reading a prompt failed")
                self._intake.fail(job, from_exception(error))
            self._drop_gone()  # whoever left while the prompt was read has no first token to go on from
        return job is not None

    def _write(self) -> None:
        try:
            with self.watch.over(f"writing {len(self._batch.rows)} answers"):
                self._pass_on(self._batch.step())
        except Exception as error:
            if not out_of_memory(error):
                raise
            # the request that joined last makes room for the others
            self._intake.fail(
                max((row.job for row in self._batch.rows), key=lambda job: job.opened), from_exception(error)
            )
            self._batch.drop(lambda row: row.job.closed)

    def _drop_gone(self) -> None:
        now = time.monotonic()
        for row in list(self._batch.rows):
            if row.job.cancelled:
                self._intake.close(row.job)
            elif now > row.job.deadline:
                self._intake.fail(row.job, too_late())
        self._batch.drop(lambda row: row.job.closed)
        self._intake.drop_late(now)

    def _pass_on(self, written: Written) -> None:
        """Tell the listeners what was written, and let finished rows leave."""
        for job, delta in written:
            usage = job.usage
            if isinstance(delta, Exception):
                if not isinstance(delta, EngineError):
                    log.error("choosing a token failed", exc_info=delta)
                self._intake.fail(job, from_exception(delta))
                continue
            usage.first_token_ms = usage.first_token_ms or job.milliseconds()
            usage.completion_tokens += 1
            if delta.text or delta.finish:
                self._intake.tell(job, delta)
            if delta.finish:
                job.rows -= 1
                if not job.rows:
                    self._intake.finish(job)
        self._batch.drop(lambda row: row.job.closed or row.ended)

    def _fail_rows(self, error: EngineError) -> None:
        for row in self._batch.rows:
            self._intake.fail(row.job, error)
        self._batch.clear()
