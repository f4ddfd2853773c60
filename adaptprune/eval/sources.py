"""Opening the files of questions: compressed or not, UTF-8 or UTF-16; what a file is otherwise is said in one line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adaptprune.errors import AdaptPruneError, reason

MAX_LINE = 256 * 2**20  # bytes; no published record comes near
MAX_DOCUMENT = 2**31  # bytes of a file that is read in one piece
UTF8_MARK = b"\xef\xbb\xbf"
UNPACKERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open,
}  # fmt: skip
#: Starts of files that are something else, and what they are.
OTHERS = {
    b"PAR1": "a parquet file", b"ARROW1": "an Arrow file", b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd (unpack it first)", b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive", b"%PDF": "a PDF", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture",
    b"SQLite format": "an SQLite database", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy file",
    b"\x80\x04\x95": "a Python pickle", b"\x80\x05\x95": "a Python pickle",
    b"\xff\xfe\0\0": "in UTF-32 (save it as UTF-8)", b"\0\0\xfe\xff": "in UTF-32 (save it as UTF-8)",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull brings the file)",
    b"<!doctype": "a web page", b"<html": "a web page",
}  # fmt: skip


class Source:
    """A file of text as UTF-8 bytes; use as a context.

    Parameters
    ----------
    path : Path
    expected : str
        What the file should hold, for messages.

    Raises
    ------
    AdaptPruneError
        It cannot be read, is damaged, or is no text; from every method.
    """

    def __init__(self, path: Path, expected: str) -> None:
        self.path, self.expected = path, expected
        with self._told():
            if path.exists() and not path.is_file():
                raise AdaptPruneError(f"{str(path)!r} is no file: {expected} is expected.")
            self._file: Any = _unpacked(path)
            head: bytes = self._file.read(1024)
        if len(head) > 262 and head[257:262] == b"ustar":
            self._refuse("a tar archive")
        for start, what in OTHERS.items():
            if head.lower().startswith(start.lower()):
                self._refuse(what)
        self._start, wide = _encoding(head)
        if wide:
            self._file = _Wide(self._file, wide)
        elif b"\0" in head:
            self._refuse("no text (it has zero bytes)")
        self.seek(self._start)

    def _refuse(self, what: str) -> None:
        self.close()
        raise AdaptPruneError(f"{str(self.path)!r} is {what}: {self.expected} is expected.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except AdaptPruneError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise AdaptPruneError(f"{str(self.path)!r} is damaged or cut off ({reason(error)}).") from None
        except OSError as error:
            raise AdaptPruneError(f"cannot read {str(self.path)!r}: {error.strerror or error}.") from None
        except ValueError as error:  # a NUL in its name
            raise AdaptPruneError(f"cannot read {str(self.path)!r}: {error}.") from None

    def lines(self) -> Iterator[bytes]:
        """From where we are; a line without an end is cut at `MAX_LINE`."""
        while True:
            with self._told():
                raw: bytes = self._file.readline(MAX_LINE)
            if not raw:
                return
            yield raw

    def whole(self) -> bytes:
        """All of it, from the start."""
        self.seek(self._start)
        with self._told():
            data: bytes = self._file.read(MAX_DOCUMENT)
        if len(data) == MAX_DOCUMENT:
            raise AdaptPruneError(f"{str(self.path)!r} has more than {MAX_DOCUMENT} bytes in one piece: use jsonl.")
        return data

    def tell(self) -> int:
        place: int = self._file.tell()
        return place

    def seek(self, place: int | None = None) -> None:
        """To a place that `tell` gave; default: the start."""
        with self._told():
            self._file.seek(self._start if place is None else place)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _unpacked(path: Path) -> IO[bytes]:
    file = path.open("rb")
    head = file.read(8)
    file.seek(0)
    for start, unpack in UNPACKERS.items():
        if head.startswith(start):
            file.close()
            opened: IO[bytes] = unpack(path)
            return opened
    return file


def _encoding(head: bytes) -> tuple[int, str]:
    """Bytes of the mark at the start, and the name of an encoding in two bytes, with or without a mark."""
    if head.startswith(UTF8_MARK):
        return len(UTF8_MARK), ""
    for mark, name in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            return len(mark), name
    if len(head) > 3 and not any(head[1:4:2]) and all(head[0:4:2]):
        return 0, "utf-16-le"
    if len(head) > 3 and not any(head[0:4:2]) and all(head[1:4:2]):
        return 0, "utf-16-be"
    return 0, ""


class _Wide:
    """A file in UTF-16 whose lines come as UTF-8; places are those in the file."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file, self._encoding, self._little = file, encoding, encoding.endswith("le")
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def readline(self, limit: int) -> bytes:
        raw, end = bytearray(), "\n".encode(self._encoding)
        while len(raw) < limit:
            piece = self._file.readline(limit)
            raw += piece
            if self._little and len(raw) % 2:
                raw += self._file.read(1)  # the other half of what may be the line's end
            if not piece or (len(raw) % 2 == 0 and raw.endswith(end)):
                break
        return self._narrow(bytes(raw))

    def read(self, limit: int) -> bytes:
        return self._narrow(self._file.read(limit))

    def _narrow(self, raw: bytes) -> bytes:
        return raw.decode(self._encoding, "replace").encode()
