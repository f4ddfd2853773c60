"""How the program ends where that is not its own doing: Ctrl-C, closed streams, a reader that has gone, a full disk."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TextIO

#: As shells have it: 128 and the number of the signal.
INTERRUPTED, PIPE_CLOSED = 130, 141


class Noticed:
    """Whether Ctrl-C was pressed while this is entered, whatever has become of the exception.

    Libraries turn a KeyboardInterrupt that hits them while they are imported into errors about themselves. A handler of
    our own would tell, but asyncio and others look for Python's; so the numbers of the signals are written to a pipe.
    """

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def __enter__(self) -> Noticed:
        with suppress(OSError, ValueError, AttributeError):  # another thread than the main one, another system
            self._ends = os.pipe()
            for end in self._ends:
                os.set_blocking(end, False)
            before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
            if before != -1:
                signal.set_wakeup_fd(before)
        return self

    def __exit__(self, *error: object) -> None:
        if self._ends is None:
            return
        with suppress(OSError, ValueError):
            before = signal.set_wakeup_fd(-1)
            if before not in (-1, self._ends[1]):
                signal.set_wakeup_fd(before)
        for end in self._ends:
            os.close(end)

    def interrupted(self) -> bool:
        """Ctrl-C was pressed since the last question."""
        with suppress(OSError):  # nothing was written
            return self._ends is not None and signal.SIGINT in os.read(self._ends[0], 2**12)
        return False


def mend_streams() -> None:
    """Give a process that was started with closed streams such that can be used.

    Nothing can be read from standard input, what goes to standard error is lost, and writing to standard output fails
    as it does in other programs. Without this, the next file that is opened would be taken for one of them.
    """
    modes = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
    for number, (name, flags, mode) in enumerate(modes):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue  # open after all: somebody set sys.stdout to None
            while (opened := os.open(os.devnull, flags)) < number:
                pass  # the lower numbers are taken by now
            assert opened == number
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a terminal that cannot show a letter is no reason to stop
            reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """One line on standard error, if anybody is there."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def flush() -> None:
    """Bring out what is still kept of the output.

    Raises
    ------
    OSError
        It cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_output() -> None:
    """Forget what could not be written, so that Python does not try again, and complain, when it ends."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
            continue
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
