"""Which answer each visitor's page waits for: it can be stopped, and what was cleared writes nothing into the page."""

from __future__ import annotations

import threading

from adaptprune.errors import AdaptPruneError

#: Seconds that something new waits for what it replaces.
PATIENCE = 3.0


class Turn:
    """One answer that is being written.

    Attributes
    ----------
    stop : Event
        Set: it is to end.
    over : Event
        Set: it has ended and shows nothing any more.
    """

    def __init__(self) -> None:
        self.stop, self.over = threading.Event(), threading.Event()


class Turns:
    """The turns of all visitors. A place is a visitor's session and a part of the page."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], Turn] = {}
        self._lock = threading.Lock()

    def begin(self, place: tuple[str, str]) -> Turn:
        """A new turn.

        Raises
        ------
        AdaptPruneError
            One is under way.
        """
        with self._lock:
            if place in self._running:
                raise AdaptPruneError("an answer is being written: wait for its end, or stop it.")
            self._running[place] = turn = Turn()
            return turn

    def shows(self, place: tuple[str, str], turn: Turn) -> bool:
        """Whether a turn may still change the page."""
        return self._running.get(place) is turn

    def end(self, place: tuple[str, str], turn: Turn) -> None:
        """A turn has ended."""
        with self._lock:
            if self._running.get(place) is turn:
                del self._running[place]
        turn.over.set()

    def stop(self, place: tuple[str, str]) -> None:
        """End what is under way; what there is of it stays."""
        if (turn := self._running.get(place)) is not None:
            turn.stop.set()

    def drop(self, place: tuple[str, str]) -> Turn | None:
        """End what is under way, and have it show nothing any more; it, if there was something."""
        with self._lock:
            turn = self._running.pop(place, None)
        if turn is not None:
            turn.stop.set()
        return turn
