"""Pictures opened ahead of the model, in worker threads, so that it never waits; a few batches at a time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from adaptprune.errors import reason

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Failed:
    """What stands in place of something that could not be made, and why."""

    why: str


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def ahead(
    groups: Iterable[Sequence[T]],
    key: Callable[[T], str],
    make: Callable[[T], R],
    wanted: Callable[[Sequence[T]], bool],
    workers: int = 4,
) -> Iterator[tuple[Sequence[T], dict[str, R | Failed]]]:
    """Each group with what `make` makes of its members, by `key`, made while earlier groups are worked on.

    Parameters
    ----------
    groups : iterable of sequences
        Read as far ahead as there are workers, at most.
    key : callable
        Members of a group with the same key share what is made of the first.
    make : callable
        An exception becomes `Failed`; what ends the program (Ctrl-C, SystemExit) comes out where the group does.
    wanted : callable
        Groups for which it is false come with nothing.
    workers : int
        Threads, and groups ahead.
    """

    def attempt(member: T) -> R | Failed:
        try:
            return make(member)
        except Exception as error:
            return Failed(reason(error))

    waiting: deque[tuple[Sequence[T], dict[str, Future[R | Failed]]]] = deque()
    with ThreadPoolExecutor(workers, "pictures") as pool:
        try:
            for group in groups:
                firsts = {key(one): one for one in reversed(group)} if wanted(group) else {}
                waiting.append((group, {name: pool.submit(attempt, one) for name, one in firsts.items()}))
                if len(waiting) > workers:
                    yield _made(*waiting.popleft())
            while waiting:
                yield _made(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _made(group: Sequence[T], futures: dict[str, Future[R | Failed]]) -> tuple[Sequence[T], dict[str, R | Failed]]:
    return group, {name: future.result() for name, future in futures.items()}
