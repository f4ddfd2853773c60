"""Asking the batch engine from a thread that waits: one conversation with its pieces as they come, or many at once."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adaptprune.engines.batch.jobs import Delta, Done, Event, Failed, Job, Usage
from adaptprune.engines.errors import EngineError
from adaptprune.engines.protocol import Answer
from adaptprune.engines.sampling import Sampling
from adaptprune.prompts import Turn
from adaptprune.pruner import Pruner

if TYPE_CHECKING:
    from adaptprune.engines.batch.engine import Engine

#: Seconds between two looks at whether an answer is still wanted.
STEP = 0.05


@dataclass(frozen=True)
class Question:
    """One conversation to be answered with others.

    Attributes
    ----------
    pruner : Pruner or None
        None: unpruned.
    make : callable, optional
        Makes the model's inputs, in place of the engine's own prompter.
    encoding : dict
        Options of the model's encode calls.
    """

    turns: Sequence[Turn]
    sampling: Sampling
    pruner: Pruner | None = None
    make: Callable[[], dict[str, Tensor]] | None = None
    encoding: dict[str, Any] = field(default_factory=dict)


def stream(
    engine: Engine, turns: Sequence[Turn], sampling: Sampling, pruner: Pruner | None, **options: Any
) -> Iterator[Event]:
    """The events of one answer: `Delta`s, then one `Done` or `Failed`. `options` are those of `Engine.open`."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        job = engine.open(sampling, pruner, events.put, **options)
    except EngineError as error:
        yield Failed(error)
        return
    try:
        engine.submit(job, turns)
        while True:
            event = events.get()
            yield event
            if not isinstance(event, Delta):
                return
    except EngineError as error:
        yield Failed(error)
    finally:
        engine.cancel(job)


def ask(
    engine: Engine,
    turns: Sequence[Turn],
    sampling: Sampling,
    pruner: Pruner | None,
    on_text: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Answer:
    """Answer one conversation (`adaptprune.engines.protocol.Engine.ask`)."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    job = engine.open(sampling, pruner, events.put, want_overlay=pruner is not None)
    pieces: list[str] = []
    finish = "stop"
    try:
        engine.submit(job, turns)
        while not stopping():
            try:
                event = events.get(timeout=STEP)
            except queue.Empty:
                continue
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return _answer("".join(pieces), finish, event.usage, event.overlay)
            finish = event.finish or finish
            pieces.append(event.text)
            on_text(event.text)
    finally:
        engine.cancel(job)  # harmless once it has finished
    return Answer("".join(pieces), "stopped")


def ask_all(engine: Engine, questions: Sequence[Question]) -> tuple[list[tuple[Answer, Usage] | EngineError], float]:
    """Answers in the questions' order, and the milliseconds from when all were ready to the last word.

    What cannot be answered has an error in its place, and stops nothing.

    All inputs are made before the first prompt is read, so that the same questions are always computed in the same
    company.
    """
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    found: list[tuple[Answer, Usage] | EngineError | None] = [None] * len(questions)
    jobs: dict[int, Job] = {}
    try:
        for place, one in enumerate(questions):
            try:
                jobs[place] = _prepared(engine, one, partial(_put, events, place))
            except EngineError as error:
                found[place] = error
        start = time.perf_counter()
        engine.enqueue(list(jobs.values()))
        texts, finishes = [""] * len(questions), ["stop"] * len(questions)
        while any(found[place] is None for place in jobs):
            place, event = events.get()
            if isinstance(event, Delta):
                texts[place] += event.text
                finishes[place] = event.finish or finishes[place]
            elif isinstance(event, Failed):
                found[place] = event.error
            else:
                found[place] = _answer(texts[place], finishes[place], event.usage), event.usage
        return [one for one in found if one is not None], 1000 * (time.perf_counter() - start)
    finally:
        for job in jobs.values():
            engine.cancel(job)


def _put(events: queue.SimpleQueue[tuple[int, Event]], place: int, event: Event) -> None:
    events.put((place, event))


def _prepared(engine: Engine, one: Question, listen: Callable[[Event], None]) -> Job:
    job = engine.open(one.sampling, one.pruner, listen)
    try:
        engine.prepare(job, one.turns, one.make)
    except BaseException:
        engine.cancel(job)
        raise
    job.encoding = one.encoding
    return job


def _answer(text: str, finish: str, usage: Usage, picture: Any = None) -> Answer:
    return Answer(
        text.strip(),
        finish,
        usage.prompt_tokens,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.first_token_ms,
        usage.total_ms,
        usage.visual_tokens if usage.images else None,
        usage.visual_tokens_kept if usage.images else None,
        usage.kv_bytes,
        usage.method,
        draw=(lambda: picture) if picture is not None else None,
    )
