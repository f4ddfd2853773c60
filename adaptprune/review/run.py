"""Asks the judge for every review that is still open, several at once, and writes each down as it arrives."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptprune.checks import whole
from adaptprune.errors import AdaptPruneError
from adaptprune.review.journal import API_ERROR, OK, UNPARSABLE, Journal
from adaptprune.review.judge import Judge, Reply
from adaptprune.review.request import Request, Unparsable

#: So many API errors with no reply between them end the run: the key, the name or the server is wrong.
ERRORS_IN_A_ROW = 10

#: Told after every review: how many are done, of how many, and how many of those failed.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes
    ----------
    output : Path
    reviews : int
        Reviews wanted.
    found : int
        Of those, good ones that the file held before.
    failed : int
        Of those, without a score now; the same call asks for them again.
    """

    output: Path
    reviews: int
    found: int
    failed: int

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "output": str(self.output)}


def first(items: Mapping[str, Any], limit: int | None) -> list[str]:
    """The first `limit` names (default: all)."""
    if limit is not None:
        whole("limit", limit, 1, 2**31)
    return list(items)[:limit]


def carry_out(
    judge: Judge,
    requests: Sequence[Request],
    output: Path,
    *,
    defaults: Mapping[str, Any],
    questions: Mapping[str, Any],
    progress: Progress,
) -> Outcome:
    """Ask for what `output` does not hold yet; may be called anywhere, also where an event loop runs (notebooks).

    Parameters
    ----------
    defaults : mapping
        Request settings of the benchmark, where the judge names none.
    questions : mapping
        All questions by id: a record of another question means that the file belongs to something else.
    """
    try:
        from anyio.from_thread import start_blocking_portal
    except ImportError:
        raise AdaptPruneError("the review needs the openai package: pip install 'adaptprune[judge]'.") from None
    settings = judge.settings(defaults)
    with Journal(output) as journal:
        _check(journal, requests, questions, judge, settings)
        todo = [r for r in requests if journal.records.get(r.key, {}).get("status") != OK]
        run = _Run(judge, settings, journal, total=len(requests), open=len(todo), progress=progress)
        connection = judge.connect() if todo else None
        progress(len(requests) - len(todo), len(requests), 0)
        if todo:
            with start_blocking_portal() as portal:
                portal.call(run.all, connection, todo)
        failed = sum(journal.records[r.key]["status"] != OK for r in requests if r.key in journal.records)
    if run.stopped:
        raise AdaptPruneError(
            f"the judge failed {ERRORS_IN_A_ROW} times in a row, last with: {run.last_error}. "
            f"{run.done} of {len(requests)} reviews are done, in {str(output)!r}: put it right and run this again."
        )
    return Outcome(output, len(requests), len(requests) - len(todo), failed)


def _check(
    journal: Journal,
    requests: Sequence[Request],
    questions: Mapping[str, Any],
    judge: Judge,
    settings: Mapping[str, Any],
) -> None:
    """Refuse a file whose scores come from another judge, prompt or answer, or are about other questions."""
    wanted = {request.key: request for request in requests}
    for key, record in journal.records.items():
        other = None
        if key[0] not in questions:
            other = f"question {key[0]} is not in the question file"
        elif key in wanted and record["status"] == OK:
            then = record["judge"]
            if then.get("model") != judge.model:
                other = f"the judge was {then.get('model')!r}"
            elif then.get("request") != settings:
                other = f"the judge was asked with {then.get('request')!r}"
            elif record["messages"] != wanted[key].messages:
                other = f"question {key[0]}, its context, an answer or the prompt has changed since"
        if other:
            raise AdaptPruneError(f"{journal.places[key]}: {other}: use another --output.")


class _Run:
    """One run's counters; `all` is the only thing to call."""

    def __init__(
        self,
        judge: Judge,
        settings: Mapping[str, Any],
        journal: Journal,
        *,
        total: int,
        open: int,
        progress: Progress,
    ) -> None:
        self.judge, self.settings, self.journal, self.progress = judge, dict(settings), journal, progress
        self.total, self.done, self.failed, self.errors = total, total - open, 0, 0
        self.last_error: str | None = None

    @property
    def stopped(self) -> bool:
        return self.errors >= ERRORS_IN_A_ROW

    async def all(self, connection: Any, todo: Sequence[Request]) -> None:
        async with connection:
            queue = iter(todo)  # shared: each worker takes the next one
            workers = [asyncio.create_task(self._work(connection, queue)) for _ in range(self.judge.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _work(self, connection: Any, queue: Any) -> None:
        for request in queue:
            if self.stopped:
                return
            reply = await connection.ask(request.messages, self.settings)
            record = self._record(request, reply)
            self.journal.append(record)
            failed = record["status"] != OK
            self.done, self.failed = self.done + (not failed), self.failed + failed
            self.errors = self.errors + 1 if reply.error else 0
            self.last_error = reply.error or self.last_error
            self.progress(self.done + self.failed, self.total, self.failed)

    def _record(self, request: Request, reply: Reply) -> dict[str, Any]:
        score: dict[str, Any] = {}
        status, error = API_ERROR, reply.error
        if reply.content is not None:
            try:
                score, status = request.parse(reply.content), OK
            except Unparsable as problem:
                status, error = UNPARSABLE, str(problem)
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "question_id": request.question_id,
            "variant": request.variant,
            "status": status,
            **request.fields,
            **score,
            "content": reply.content,
            "error": error,
            "date": now.isoformat(timespec="seconds"),
            "judge": {
                "model": self.judge.model,
                "returned": reply.model,
                "url": self.judge.endpoint(),
                "request": self.settings,
            },
            "finish_reason": reply.finish_reason,
            "usage": reply.usage,
            "messages": request.messages,
        }
