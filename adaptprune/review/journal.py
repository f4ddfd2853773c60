"""The output file: a line per review, written whole and at once, only ever added to.

A run that was killed leaves at most one torn last line, which is mended: completed if only the line end is missing,
else cut off. Every other line stays as it is. A failed review is a line too, and the same review asked again is a
further line: the last one counts. One process at a time may write (a hidden lock file next to it sees to that).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from adaptprune.disk import Lock, writing
from adaptprune.errors import AdaptPruneError
from adaptprune.review.files import raw_lines, shorten

FORMAT = "adaptprune-review-1"
START = f'{{"format": "{FORMAT}", '.encode()
OK, API_ERROR, UNPARSABLE = "ok", "api_error", "unparsable"
STATUSES = (OK, API_ERROR, UNPARSABLE)


def parse_record(line: bytes, place: str) -> dict[str, Any]:
    """A line of a file that `Journal` wrote."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    right = isinstance(record, dict) and record.get("format") == FORMAT and record.get("status") in STATUSES
    if (
        not right
        or not {"question_id", "variant", "messages"} <= set(record)
        or not isinstance(record.get("judge"), dict)
    ):
        raise AdaptPruneError(f"{place} is not a record of a review: {shorten(line.decode('utf-8', 'replace'))!r}.")
    return dict(record)


class Journal:
    """The reviews in one file. Use as ``with Journal(path) as journal``.

    Raises
    ------
    AdaptPruneError
        The file holds something else (it is then not touched), or another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[tuple[str, str], dict[str, Any]] = {}
        self.places: dict[tuple[str, str], str] = {}
        self._lock = Lock(path.with_name(f".{path.name}.lock"), repr(str(path)))
        self._file: BinaryIO | None = None
        self._end, self._missing = 0, b""

    def __enter__(self) -> Journal:
        if self.path.is_dir():
            raise AdaptPruneError(f"{str(self.path)!r} is a folder: name a file for the reviews.")
        with ExitStack() as undo:
            undo.enter_context(self._lock)
            self._end, self._missing = self._read() if self.path.exists() else (0, b"")
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._file is not None:
                with writing(self.path):
                    self._file.close()
        finally:
            self._lock.__exit__()

    def _read(self) -> tuple[int, bytes]:
        """Read every record; returns where the last one ends, and what its line is short of."""
        end, missing = 0, b""
        for place, line in raw_lines(self.path):
            torn = not line.endswith(b"\n")  # only the last line can be
            try:
                record = parse_record(line, place)
            except AdaptPruneError:
                if torn and line[: len(START)] == START[: len(line)]:
                    break
                raise  # a file that is not ours stays as it is
            key = str(record["question_id"]), str(record["variant"])
            self.records[key], self.places[key] = record, place
            end, missing = end + len(line), b"\n" if torn else b""
        return end, missing

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one review; it is on the disk when this returns."""
        line = json.dumps({"format": FORMAT, **record}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        assert line.startswith(START)
        with writing(self.path):
            if self._file is None:  # not before there is something to write
                self._file = self.path.open("ab")
                self._file.truncate(self._end)
                self._file.write(self._missing)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.records[str(record["question_id"]), str(record["variant"])] = {"format": FORMAT, **record}
