"""Reading the files that benchmarks publish: jsonl, tsv, json, parquet; streamed, with a message for each bad line.

Lines may end in LF or CRLF; encodings and compression are those of `adaptprune.eval.sources`. A record that cannot be
read is yielded as `Bad`, so that nothing is lost without a word and the rest goes on. Knows nothing of questions.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError, first_line, reason
from adaptprune.eval.sources import MAX_LINE, Source

JSONL = "jsonl (a JSON object on each line)"
TSV = "a tab-separated table (tsv)"
CUT = 64  # characters
LOOKED_AT = 10  # lines that tell what a file is


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used: where it stands and why."""

    place: str
    why: str

    def at(self, place: str) -> Bad:
        return replace(self, place=place)


def need(path: Path, what: str) -> Path:
    """The path itself if there is something; the error names it and what belongs there."""
    if not path.exists():
        raise AdaptPruneError(f"{str(path)!r} is missing: {what} belongs there (see docs/evaluation.md).")
    return path


def jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """(place, object) of each line that is not empty; a JSON list of objects, or an object that holds one, will do.

    Raises
    ------
    AdaptPruneError
        The file as a whole is something else.
    """
    with Source(path, JSONL) as source:
        if _is_one_document(source):
            yield from _entries(path, _document(path, source.whole()))
            return
        source.seek()
        for number, raw in enumerate(source.lines(), 1):
            if raw.strip():
                place = f"{path.name}, line {number}"
                found = _parse(raw)
                yield found.at(place) if isinstance(found, Bad) else (place, found)


def _parse(raw: bytes) -> dict[str, Any] | Bad:
    """A line's object; without a place if it has none."""
    try:
        found = json.loads(raw.decode().strip("\ufeff \t\r\n"))
    except (ValueError, RecursionError) as error:
        return Bad("", _why_not_json(error, raw))
    return found if isinstance(found, dict) else Bad("", f"is a JSON {type(found).__name__}, not an object")


def _why_not_json(error: Exception, raw: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte {error.start + 1}): save the file as UTF-8"
    before = raw.decode()[: error.pos] if isinstance(error, json.JSONDecodeError) else ""
    comma = "; a comma too many?" if before.rstrip().endswith(",") or raw.rstrip().endswith(b",") else ""
    return f"is not JSON ({first_line(error)}{comma})"


def _is_one_document(source: Source) -> bool:
    """Whether a file is one piece of JSON, and not a line per record; an error if it is neither."""
    lines = list(itertools.islice((raw for raw in source.lines() if raw.strip()), LOOKED_AT))
    if not lines:
        return False
    found = [_parse(raw) for raw in lines]
    start = lines[0].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if len(lines) == 1 and isinstance(found[0], dict):
        return bool(_lists(found[0])) and not {"question_id", "image", "text"} & set(found[0])
    if any(isinstance(one, dict) for one in found):  # the others are bad lines, or one per line of a list
        return start == b"[" and not lines[0].rstrip().endswith(b"]")
    if start == b"[":
        return len(lines) == 1 or not _is_json(lines[0])
    if start == b"{":
        return True
    seen = lines[0].decode("utf-8", "replace").strip()[:60]
    raise AdaptPruneError(f"{str(source.path)!r} starts with {seen!r}: {source.expected} is expected.")


def _is_json(raw: bytes) -> bool:
    return not isinstance(found := _parse(raw), Bad) or "not an object" in found.why


def _document(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise AdaptPruneError(f"{str(path)!r} {_why_not_json(error, data)}.") from None


def _entries(path: Path, found: Any) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """The records of a file that is one piece of JSON."""
    if isinstance(found, dict):
        lists = _lists(found)
        named = [name for name in ("questions", "data") if name in lists]
        if len(lists) != 1 and len(named) != 1:
            keys = ", ".join(map(repr, list(found)[:5]))
            raise AdaptPruneError(f"{str(path)!r} is one JSON object ({keys}): {JSONL} is expected.")
        found = lists[named[0]] if named else next(iter(lists.values()))
    for number, one in enumerate(found, 1):
        place = f"{path.name}, entry {number}"
        yield (place, one) if isinstance(one, dict) else Bad(place, f"is a JSON {type(one).__name__}, not an object")


def _lists(found: dict[str, Any]) -> dict[str, list[Any]]:
    """The lists of objects in an object."""
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and any(isinstance(one, dict) for one in value)
    }


def load_json(path: Path, kind: type = dict) -> Any:
    """A whole JSON file, of a kind known beforehand; for annotations, which hold no pictures."""
    with Source(path, "JSON") as source:
        found = _document(path, source.whole())
    if not isinstance(found, kind):
        raise AdaptPruneError(
            f"{str(path)!r} holds a JSON {type(found).__name__} where a {kind.__name__} is expected: another file?"
        )
    return found


@dataclass(frozen=True)
class Row:
    """Cells of a row, and the byte where it starts in its file, so that a large cell can be read again later."""

    offset: int
    cells: dict[str, str]


def tsv(path: Path, without: str = "") -> Iterator[tuple[str, Row] | Bad]:
    """(place, row) of a tab-separated file as pandas writes it; the cell `without` is cut to `CUT` characters."""
    with Source(path, TSV) as source:
        header, start = _header(source), source.tell()
        reader = csv.reader(_decoded(source), delimiter="\t")
        number = 1
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                why = (
                    "is not UTF-8: save the file as UTF-8"
                    if isinstance(error, ValueError)
                    else f"cannot be read ({error})"
                )
                yield Bad(f"{path.name}, row {number}", why)
                start = source.tell()
                reader = csv.reader(_decoded(source), delimiter="\t")  # the error ended the lines of the one before
                continue
            offset, start = start, source.tell()
            if not cells:
                continue
            if len(cells) != len(header):
                yield Bad(f"{path.name}, row {number}", f"has {len(cells)} cells, the header {len(header)}")
                continue
            named = dict(zip(header, cells, strict=True))
            if without in named:
                named[without] = named[without][:CUT]
            yield f"{path.name}, row {number}", Row(offset, named)


def tsv_cell(path: Path, offset: int, column: str) -> str:
    """One cell of the row that starts at `offset`."""
    with Source(path, TSV) as source:
        header = _header(source)
        source.seek(offset)
        return next(csv.reader(_decoded(source), delimiter="\t"))[header.index(column)]


def _header(source: Source) -> list[str]:
    csv.field_size_limit(MAX_LINE)
    try:
        found = next(csv.reader(_decoded(source), delimiter="\t"), None)
    except (csv.Error, UnicodeDecodeError) as error:
        raise AdaptPruneError(f"{str(source.path)!r} cannot be read ({reason(error)}): {TSV} is expected.") from None
    if not found:
        raise AdaptPruneError(f"{str(source.path)!r} is empty: download it again.")
    if len(found) == 1:
        raise AdaptPruneError(f"{str(source.path)!r} has no tab in its first line: {TSV} is expected.")
    return found


def _decoded(source: Source) -> Iterator[str]:
    """Lines as text; the csv reader asks only for those of the row it reads, so `source.tell()` is the next row."""
    for raw in source.lines():
        text = raw.decode()
        yield text[:-2] + "\n" if text.endswith("\r\n") else text


def import_pyarrow() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise AdaptPruneError("parquet files need pyarrow: pip install 'adaptprune[eval]'.") from None
    return pyarrow


def parquet(paths: list[Path], batch: int = 32) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """(place, row) of every row; a few rows of one file are in memory at a time."""
    pyarrow = import_pyarrow()
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                number = 0
                for rows in file.iter_batches(batch_size=batch):
                    for row in rows.to_pylist():
                        number += 1
                        yield f"{path.name}, row {number}", row
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            yield Bad(path.name, f"cannot be read any further ({reason(error)})")
