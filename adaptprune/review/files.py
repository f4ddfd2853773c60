"""Reads the published files (jsonl and json): every mistake in one is an error that names the file and the line.

UTF-8 with or without a byte order mark, Unix or Windows line ends, blank lines ignored. Lines are streamed and bounded.
Knows nothing of judges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError

MAX_LINE = 16 * 2**20
MAX_FILE = 256 * 2**20


@dataclass(frozen=True)
class Row:
    """One JSON object of a file, and where it stands ("questions.jsonl, line 3"), for error messages."""

    place: str
    data: dict[str, Any]

    def text(self, key: str) -> str:
        """The string under `key`; may be empty (a model may answer nothing)."""
        value = self.data.get(key)
        if not isinstance(value, str):
            found = f"it is {value!r}" if key in self.data else "there is none"
            raise AdaptPruneError(f"{self.place}: {key!r} has to be a text, but {shorten(found)}.")
        if not _encodes(value):
            raise AdaptPruneError(f"{self.place}: {key!r} holds half a character (a lone surrogate): repair the text.")
        return value

    @property
    def question_id(self) -> int | str:
        value = self.data.get("question_id")
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not _encodes(str(value)):
            found = f"it is {value!r}" if "question_id" in self.data else "there is none"
            raise AdaptPruneError(f"{self.place}: 'question_id' has to be a whole number or a text, but {found}.")
        return value


def shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_file(path: Path) -> None:
    """A file that is there and is no folder."""
    if path.is_dir():
        raise AdaptPruneError(f"{str(path)!r} is a folder: name the file in it.")
    if not path.exists():
        raise AdaptPruneError(f"there is no file {str(path)!r}.")


def raw_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line stands, and its bytes with the line end."""
    check_file(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise AdaptPruneError(f"{path}, line {number} is longer than {MAX_LINE} bytes: this is no jsonl.")
            yield f"{path}, line {number}", line


def read_jsonl(path: Path) -> Iterator[Row]:
    """The objects of a jsonl file, one at a time."""
    for place, line in raw_lines(path):
        if line.strip(b"\xef\xbb\xbf \t\r\n"):
            yield Row(place, read_line(line, place))


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AdaptPruneError(f"{place}: byte {error.start + 1} is not UTF-8: save the file as UTF-8.") from None


def read_line(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object on a line."""
    try:
        value = json.loads(_decode(line, place))
    except (ValueError, RecursionError) as error:
        raise AdaptPruneError(f"{place} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise AdaptPruneError(f"{place} is not a JSON object, but {shorten(repr(value))}.")
    return value


def read_by(path: Path, key: str = "question_id") -> dict[str, Row]:
    """The rows of a jsonl file by `key` as a text; the same one twice is an error."""
    rows: dict[str, Row] = {}
    for row in read_jsonl(path):
        name = str(row.question_id) if key == "question_id" else row.text(key)
        if name in rows:
            raise AdaptPruneError(f"{row.place}: {key} {name!r} is there already ({rows[name].place}): keep one.")
        rows[name] = row
    if not rows:
        raise AdaptPruneError(f"{str(path)!r} is empty.")
    return rows


def read_object(path: Path) -> dict[str, Any]:
    """One JSON object that fills a file; a name twice in it is an error."""
    check_file(path)
    if path.stat().st_size > MAX_FILE:
        raise AdaptPruneError(f"{str(path)!r} is larger than {MAX_FILE} bytes.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise AdaptPruneError(f"{path}: {twice!r} is there twice: keep one.")
        return made

    text = _decode(path.read_bytes(), str(path))
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except AdaptPruneError:
        raise
    except json.JSONDecodeError as error:
        raise AdaptPruneError(f"{path}, line {error.lineno} is not JSON ({error.msg}).") from None
    except RecursionError:
        raise AdaptPruneError(f"{path} is not JSON that can be read: it is nested too deeply.") from None
    if not isinstance(value, dict):
        raise AdaptPruneError(f"{path} is not a JSON object, but {shorten(repr(value))}.")
    return value


def read_text(path: Path) -> str:
    """A text file, line ends as \\n."""
    check_file(path)
    if path.stat().st_size > MAX_LINE:
        raise AdaptPruneError(f"{str(path)!r} is larger than {MAX_LINE} bytes: this is no prompt.")
    return _decode(path.read_bytes(), str(path)).replace("\r\n", "\n")
