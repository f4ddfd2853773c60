"""The engine: answers requests with one model, many at a time. Its thread is in `loop`.

Not here: HTTP, images from the network, API keys. Front ends in the same process use `Engine.stream`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from adaptprune.engines.batch.ask import ask
from adaptprune.engines.batch.batch import Batch, Counters
from adaptprune.engines.batch.grammar import Grammars
from adaptprune.engines.batch.jobs import Delta, Event, Failed, Job, Sampling
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.batch.loop import Loop
from adaptprune.engines.batch.vocabulary import Vocabulary
from adaptprune.engines.errors import EngineError, refused, shutting_down
from adaptprune.engines.protocol import BATCHING, PICTURES, Answer, Pruning, never, quiet
from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams import parts
from adaptprune.prompts import Prompter, PromptError, Turn, images_of
from adaptprune.pruner import Pruner


class Engine(Loop):
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
        self.model, self.processor, self.pruner = model, processor, pruner
        self.prompter = Prompter(processor, model, protocol)
        batch = Batch(model, processor, self.prompter.tokenizer(), remember)
        super().__init__(name, batch, limits or EngineLimits())
        self._vocabulary = Vocabulary(self.prompter.tokenizer(), self._batch.eos)
        self._grammars = Grammars(self._vocabulary)
        if pruner is not None:
            pruner.warm_up()

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
        return max(0, len(self._open) - len({id(row.job) for row in list(self._batch.rows)}))

    @property
    def pending(self) -> int:
        """Requests taken in and not finished."""
        return len(self._open)

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
        with self._wake:
            if self._draining or self._stopping:
                raise shutting_down()
            if len(self._open) >= self.limits.max_batch + self.limits.max_queue:
                wait = self._pace * (1 + len(self._open) / self.limits.max_batch)
                raise EngineError(
                    "queue_full",
                    f"{len(self._open)} requests are running or waiting, which is all that this server takes: try "
                    "again later.",
                    retry_after=max(1, min(60, round(wait))),
                )
            self._open.add(job)
        return job

    def check(self, pruning: Pruning) -> None:
        """Raise AdaptPruneError if this model cannot be pruned so."""
        pruning.check()
        pruner = pruning.pruner(self.pruner)
        if pruner is None:
            return
        layers = parts.num_layers(self.model.config)
        for layer in pruner.schedule(layers):
            if not 0 <= layer < layers:
                raise AdaptPruneError(
                    f"layer={layer} is outside the model, which has {layers} decoder layers: use "
                    f"{pruner.smallest_layer} to {layers - 1}."
                )

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
        with self._wake:
            if self._stopping:
                raise shutting_down()
            self._waiting += [job for job in jobs if not job.closed]
            self._wake.notify()

    def forget(self) -> None:
        """Drop the encoded pictures that are remembered; not while requests run."""
        if self._batch.encoded is not None:
            self._batch.encoded.forget()

    def cancel(self, job: Job) -> None:
        """Give a request up, wherever it is; nothing more is said about it. Harmless if it has finished."""
        with self._wake:
            if not job.closed:
                job.cancelled = True
                if not job.rows:  # the engine's thread closes those that it works on
                    self._close(job)
                self._wake.notify()

    def stream(self, turns: Sequence[Turn], sampling: Sampling | None = None, **options: Any) -> Iterator[Event]:
        """Answer a conversation in this process: `Delta`s, then one `Done` or `Failed`.

        Parameters
        ----------
        turns : sequence of Turn
        sampling : Sampling, optional
        **options
            `pruner` (default: the engine's), and those of `open`.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        pruner = options.pop("pruner", self.pruner)
        try:
            job = self.open(sampling or Sampling(), pruner, events.put, **options)
        except EngineError as error:
            yield Failed(error)
            return
        try:
            self.submit(job, turns)
            while True:
                event = events.get()
                yield event
                if not isinstance(event, Delta):
                    return
        except EngineError as error:
            yield Failed(error)
        finally:
            self.cancel(job)

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
        pruner = (pruning or Pruning()).pruner(self.pruner)
        return ask(self, turns, sampling or Sampling(), pruner, on_text, stopping)

    def reset(self) -> None:
        """Nothing is kept of earlier questions but pictures."""
        self.forget()

    def close(self) -> None:
        """Stop."""
        self.stop()

    def drain(self) -> None:
        """Refuse new requests; those taken in go on."""
        with self._wake:
            self._draining = True

    def stop(self, timeout: float = 30.0) -> None:
        """Fail what is left with a clean error, end the thread and take the hooks off."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._batch.close()
