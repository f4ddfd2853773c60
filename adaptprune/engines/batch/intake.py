"""The requests that an engine has taken in: who waits, who is told what, who has left. Any thread may come here."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from adaptprune.engines.batch.jobs import Done, Event, Failed, Job
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.errors import EngineError, shutting_down, too_late

log = logging.getLogger(__name__)


class Intake:
    """From the moment a request has a place until nothing more is said about it.

    Parameters
    ----------
    limits : EngineLimits

    Attributes
    ----------
    open : set of Job
        Taken in and not finished.
    draining, stopping : bool
        Nothing new is taken in; and what is there is failed.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self.open: set[Job] = set()
        self.draining = self.stopping = False
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()  # its lock may be taken again by the thread that holds it
        self._pace = 1.0  # seconds that a request holds a place, smoothed

    def add(self, job: Job) -> None:
        """Take a request in.

        Raises
        ------
        EngineError
            There is no place, or the engine is shutting down.
        """
        with self._wake:
            if self.draining or self.stopping:
                raise shutting_down()
            count, most = len(self.open), self._limits.max_batch + self._limits.max_queue
            if count >= most:
                wait = self._pace * (1 + count / self._limits.max_batch)
                raise EngineError(
                    "queue_full",
                    f"{count} requests are running or waiting, which is all that this server takes: try again later.",
                    retry_after=max(1, min(60, round(wait))),
                )
            self.open.add(job)

    def enqueue(self, jobs: Sequence[Job]) -> None:
        """Let prepared requests wait, all at once, so that what is read when does not depend on chance."""
        with self._wake:
            if self.stopping:
                raise shutting_down()
            self._waiting += [job for job in jobs if not job.closed]
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Give a request up, wherever it is; nothing more is said about it. Harmless if it has finished."""
        with self._wake:
            if not job.closed:
                job.cancelled = True
                if not job.rows:  # the engine's thread closes those that it works on
                    self.close(job)
                self._wake.notify()

    def drain(self, stop: bool = False) -> None:
        """Refuse new requests; those taken in go on, or, with `stop`, are to be failed."""
        with self._wake:
            self.draining, self.stopping = True, self.stopping or stop
            self._wake.notify()

    # -- the engine's thread ------------------------------------------------------------------------------------------

    def wait(self, busy: Callable[[], bool], seconds: float | None) -> bool:
        """Until there is something to do, or for some seconds; whether there is."""
        with self._wake:
            if not (self._waiting or busy() or self.stopping):
                self._wake.wait(seconds)
            return bool(self._waiting) or busy() or self.stopping

    def next(self, rows: int) -> Job | None:
        """The request that has waited longest and fits beside `rows` rows; None if there is none."""
        with self._wake:
            while self._waiting:
                job = self._waiting[0]
                if not job.closed and rows and rows + job.sampling.n > self._limits.max_batch:
                    return None
                self._waiting.popleft()
                if job.closed:
                    continue
                if time.monotonic() > job.deadline:
                    self.fail(job, too_late())
                    continue
                job.rows = job.sampling.n
                return job
        return None

    def drop_late(self, now: float) -> None:
        """Fail what has waited too long."""
        with self._wake:
            self._waiting = deque(job for job in self._waiting if not job.closed)
            late = [job for job in self._waiting if now > job.deadline]
        for job in late:
            self.fail(job, too_late())

    def finish(self, job: Job) -> None:
        """Say that an answer is complete."""
        job.usage.total_ms = job.milliseconds()
        self._pace += 0.1 * (job.usage.total_ms / 1000 - self._pace)
        self.close(job)
        self.tell(job, Done(job.usage, job.picture))

    def fail(self, job: Job, error: EngineError) -> None:
        """Say that a request is not answered; nothing if it is closed."""
        if not job.closed:
            self.close(job)
            self.tell(job, Failed(error))

    def tell(self, job: Job, event: Event) -> None:
        """Hand an event to the request's listener."""
        try:
            job.on_event(event)
        except Exception:  # the listener is gone (a closed event loop, say): that is no reason to fail the others
            log.warning("an answer had no listener any more")
            job.cancelled = True

    def close(self, job: Job) -> None:
        """Nothing more is said about a request, and what it held is let go."""
        with self._wake:
            job.closed = True
            job.inputs, job.images, job.grammar = {}, [], None
            self.open.discard(job)
