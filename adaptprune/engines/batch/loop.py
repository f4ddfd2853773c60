"""The engine's thread: reads prompts, writes tokens, tells who asked. What waits and what runs is kept here.

Each prompt is read alone, under its own `adaptprune.prune`; its cache then joins the running `Batch`, which writes one
token per step for every row. Between two steps few waiting prompts are read, so that a new request joins without
waiting for the longest answer and running answers are not held up for long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import torch

from adaptprune.engines.batch.batch import Batch, BrokenOff, Written
from adaptprune.engines.batch.jobs import Done, Event, Failed, Job
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.batch.memory import give_back
from adaptprune.engines.batch.watch import Watch
from adaptprune.engines.errors import EngineError, from_exception, out_of_memory, shutting_down, too_late
from adaptprune.errors import AdaptPruneError

log = logging.getLogger(__name__)

#: Seconds without a request after which memory is handed back.
IDLE = 1.0


class Loop:
    """One thread over one batch; what others share with it is guarded by `_wake`.

    Parameters
    ----------
    name : str
        For the thread and the log.
    batch : Batch
    limits : EngineLimits
    """

    def __init__(self, name: str, batch: Batch, limits: EngineLimits) -> None:
        self.name, self.limits, self._batch = name, limits, batch
        self.watch = Watch()
        self._open: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._draining = self._stopping = False
        self._pace = 1.0  # seconds that a request holds a place in the batch, smoothed
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def _run(self) -> None:
        tidy = True
        while True:
            with self._wake:
                if not (self._waiting or self._batch.rows or self._stopping):
                    self._wake.wait(None if tidy else IDLE)
                if self._stopping:
                    break
                idle = not (self._waiting or self._batch.rows)
            if idle:
                if not tidy:
                    give_back(self._batch.model.device)
                tidy = True
                continue
            tidy = False
            try:
                with torch.inference_mode():
                    self._turn()
            except BaseException as error:  # a defect: everybody hears of it, and the next request finds a clean batch
                log.exception("the engine %r failed", self.name)
                self._fail_rows(from_exception((isinstance(error, BrokenOff) and error.__cause__) or error))
        for job in list(self._open):
            self._fail(job, shutting_down())
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
        job = self._next()
        if job is not None:
            job.usage.queue_ms = job.milliseconds()
            try:
                with self.watch.over("reading a prompt"):
                    self._pass_on(self._batch.read(job))
            except Exception as error:
                if not isinstance(error, AdaptPruneError):
                    log.exception("reading a prompt failed")
                self._fail(job, from_exception(error))
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
            self._fail(max((row.job for row in self._batch.rows), key=lambda job: job.opened), from_exception(error))
            self._batch.drop(lambda row: row.job.closed)

    def _next(self) -> Job | None:
        with self._wake:
            while self._waiting:
                job = self._waiting[0]
                if (
                    not job.closed
                    and self._batch.rows
                    and len(self._batch.rows) + job.sampling.n > self.limits.max_batch
                ):
                    return None
                self._waiting.popleft()
                if job.closed:
                    continue
                if time.monotonic() > job.deadline:
                    self._fail(job, too_late())
                    continue
                job.rows = job.sampling.n
                return job
        return None

    def _drop_gone(self) -> None:
        now = time.monotonic()
        for row in list(self._batch.rows):
            if row.job.cancelled:
                self._close(row.job)
            elif now > row.job.deadline:
                self._fail(row.job, too_late())
        self._batch.drop(lambda row: row.job.closed)
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.closed)
            late = [job for job in self._waiting if now > job.deadline]
        for job in late:
            self._fail(job, too_late())

    def _pass_on(self, written: Written) -> None:
        """Tell the listeners what was written, and let finished rows leave."""
        for job, delta in written:
            usage = job.usage
            if isinstance(delta, Exception):
                if not isinstance(delta, EngineError):
                    log.error("choosing a token failed", exc_info=delta)
                self._fail(job, from_exception(delta))
                continue
            usage.first_token_ms = usage.first_token_ms or job.milliseconds()
            usage.completion_tokens += 1
            if delta.text or delta.finish:
                self._tell(job, delta)
            if delta.finish:
                job.rows -= 1
                if not job.rows:
                    self._finish(job)
        self._batch.drop(lambda row: row.job.closed or row.ended)

    def _finish(self, job: Job) -> None:
        job.usage.total_ms = job.milliseconds()
        self._pace += 0.1 * (job.usage.total_ms / 1000 - self._pace)
        self._close(job)
        self._tell(job, Done(job.usage, job.picture))

    def _fail(self, job: Job, error: EngineError) -> None:
        if not job.closed:
            self._close(job)
            self._tell(job, Failed(error))

    def _tell(self, job: Job, event: Event) -> None:
        try:
            job.on_event(event)
        except Exception:  # the listener is gone (a closed event loop, say): that is no reason to fail the others
            log.warning("an answer had no listener any more")
            job.cancelled = True

    def _fail_rows(self, error: EngineError) -> None:
        for row in self._batch.rows:
            self._fail(row.job, error)
        self._batch.clear()

    def _close(self, job: Job) -> None:
        with self._wake:  # a Condition's lock may be taken again by the thread that holds it
            job.closed = True
            job.inputs, job.images, job.grammar = {}, [], None
            self._open.discard(job)
