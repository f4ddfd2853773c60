"""What an engine's thread is doing and for how long: how others tell a busy thread from one that hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Written by one thread, read by others.

    Attributes
    ----------
    doing : tuple of (str, float) or None
        What is under way, and when it began by time.monotonic.
    """

    def __init__(self) -> None:
        self.doing: tuple[str, float] | None = None

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Say what is done inside the `with`."""
        self.doing = (what, time.monotonic())
        try:
            yield
        finally:
            self.doing = None

    @property
    def seconds(self) -> float:
        """Since what is under way began; 0 if nothing is."""
        doing = self.doing
        return 0.0 if doing is None else time.monotonic() - doing[1]
