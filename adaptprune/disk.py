"""Writing files: whole or not at all, and a failure that names the file. Locks that tell who holds them."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from adaptprune.errors import AdaptPruneError

HELD_FROM = 2**30  # the byte that is locked on Windows, where locked bytes cannot be read: far behind the text


class WriteError(OSError):
    """A file could not be written; the message names it and says why."""

    def __str__(self) -> str:
        return f"cannot write {self.filename!r}: {self.strerror or 'the system does not say why'}."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Any failure to write inside becomes a `WriteError` about `path`, or about the file that the system names."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(error.filename or path)) from None


def make_folder(path: Path) -> Path:
    """The folder, made with those above it if it is not there."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file next to `path`, which then takes its place: what was there before stays until then."""
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            write(part)
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all; what UTF-8 cannot hold (half a character) is written as an escape."""
    write_whole(path, lambda part: part.write_bytes(text.encode("utf-8", "backslashreplace")))


class Lock:
    """One process at a time; use as ``with Lock(path, what)``.

    The system holds it and lets go of it when the process ends, however that is: a file that a killed process left is
    no obstacle. The file says who holds the lock, for those who wait.

    Parameters
    ----------
    path : Path
        The lock's own file; made with its folder, and left there, empty.
    what : str
        What it guards, for the message.

    Raises
    ------
    AdaptPruneError
        Another process holds it; the message says which.
    WriteError
        The file cannot be made.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Lock:
        make_folder(self.path.parent)
        with writing(self.path):
            file = self.path.open("ab+")
        try:
            _take(file)
        except OSError as error:
            file.close()
            if _unsupported(error):  # some network file systems have no locks
                return self
            raise AdaptPruneError(
                f"{self.what} is in use by {_holder(self.path)}: wait for it, or write elsewhere."
            ) from None
        self._file = file
        with suppress(OSError):  # a full disk is told by what comes next
            file.truncate(0)
            file.write(json.dumps(_about_us()).encode())
            file.flush()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._file.truncate(0)
        self._file.close()
        self._file = None


def _take(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(HELD_FROM)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unsupported(error: OSError) -> bool:
    import errno

    return error.errno in {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


def _about_us() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_bytes())
        return f"process {found['pid']} on {found['host']}, since {found['since']} ({found['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is just writing its name
        return "another process"
