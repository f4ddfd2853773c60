"""Reading the files that benchmarks publish: jsonl, tsv, json, parquet; streamed, with a message for each bad line.

Lines may end in LF or CRLF and a file may start with a byte order mark. A record that cannot be read is yielded as
`Bad`, so that nothing is lost without a word and the rest goes on. Knows nothing of questions.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.images import decode_image, open_image

BOM = b"\xef\xbb\xbf"
MAX_LINE = 256 * 2**20  # bytes; no published record comes near


@dataclass(frozen=True)
class Bad:
    """A record that cannot be used: where it stands and why."""

    place: str
    why: str


def need(path: Path, what: str) -> Path:
    """The path itself if there is something; the error names it and what belongs there."""
    if not path.exists():
        raise AdaptPruneError(f"{str(path)!r} is missing: {what} belongs there (see docs/evaluation.md).")
    return path


def jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """(place, object) of each line that is not empty."""
    with _open(path) as file:
        for number, raw in enumerate(_lines(file), 1):
            place = f"{path.name}, line {number}"
            if not raw.strip():
                continue
            try:
                found = json.loads(raw)
            except (ValueError, RecursionError) as error:  # wrong UTF-8 is a ValueError, too
                yield Bad(place, f"is not JSON ({error})")
                continue
            if isinstance(found, dict):
                yield place, found
            else:
                yield Bad(place, f"is a JSON {type(found).__name__}, not an object")


def load_json(path: Path, kind: type = dict) -> Any:
    """A whole JSON file, of a kind known beforehand; for annotations, which hold no pictures."""
    try:
        found = json.loads(path.read_bytes().removeprefix(BOM))
    except (OSError, ValueError) as error:
        raise AdaptPruneError(f"cannot read {str(path)!r} as JSON ({error}): download it again.") from None
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
    """(place, row) of a tab-separated file as pandas writes it; the cell `without` is cut to 64 characters."""
    with _open(path) as file:
        header, start = _header(path, file), file.tell()
        reader = csv.reader(_decoded(file), delimiter="\t")
        number = 1
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                yield Bad(f"{path.name}, row {number}", f"cannot be read ({error})")
                start = file.tell()
                continue
            offset, start = start, file.tell()
            if not cells:
                continue
            if len(cells) != len(header):
                yield Bad(f"{path.name}, row {number}", f"has {len(cells)} cells, the header {len(header)}")
                continue
            named = dict(zip(header, cells, strict=True))
            if without in named:
                named[without] = named[without][:64]
            yield f"{path.name}, row {number}", Row(offset, named)


def tsv_cell(path: Path, offset: int, column: str) -> str:
    """One cell of the row that starts at `offset`."""
    with _open(path) as file:
        header = _header(path, file)
        file.seek(offset)
        return next(csv.reader(_decoded(file), delimiter="\t"))[header.index(column)]


def _header(path: Path, file: BinaryIO) -> list[str]:
    csv.field_size_limit(MAX_LINE)
    found = next(csv.reader(_decoded(file), delimiter="\t"), None)
    if not found:
        raise AdaptPruneError(f"{str(path)!r} is empty: download it again.")
    return found


def _decoded(file: BinaryIO) -> Iterator[str]:
    """Lines as text; the csv reader asks only for those of the row it reads, so `file.tell()` is the next row."""
    for raw in _lines(file):
        text = raw.decode()
        yield text[:-2] + "\n" if text.endswith("\r\n") else text


def _open(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise AdaptPruneError(f"cannot read {str(path)!r}: {error.strerror}.") from None
    if file.read(len(BOM)) != BOM:
        file.seek(0)
    return file


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(MAX_LINE):
        yield raw


def parquet(paths: list[Path], batch: int = 32) -> Iterator[tuple[str, dict[str, Any]] | Bad]:
    """(place, row) of every row; a few rows of one file are in memory at a time."""
    try:
        import pyarrow as pa
        from pyarrow import parquet as pq
    except ImportError:
        raise AdaptPruneError("parquet files need pyarrow: pip install 'adaptprune[eval]'.") from None
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                number = 0
                for rows in file.iter_batches(batch_size=batch):
                    for row in rows.to_pylist():
                        number += 1
                        yield f"{path.name}, row {number}", row
        except (pa.ArrowException, OSError) as error:
            yield Bad(path.name, f"cannot be read any further ({str(error).splitlines()[0]})")


def from_file(folder: Path, name: str) -> list[Image.Image]:
    """The picture `name` in a folder. A name that leads out of the folder is refused: question files are downloads."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise AdaptPruneError(f"the picture {name!r} is outside of {str(folder)!r}: move it there.")
    return [open_image(path)]


def from_base64(text: str, name: str) -> list[Image.Image]:
    """The picture in a base64 cell; `name` is for error messages."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AdaptPruneError(f"{name!r} is not base64 ({error}): download the file again.") from None
    return [decode_image(data, name)]


def from_cell(path: Path, offset: int, column: str, name: str) -> list[Image.Image]:
    """The picture in a cell of a tsv file."""
    return from_base64(tsv_cell(path, offset, column), name)


def from_parquet(value: Any, name: str) -> Any:
    """An opener of the picture(s) in a cell: ``{"bytes": ..., "path": ...}`` or a list of them."""
    cells = value if isinstance(value, list) else [value]
    return partial(_from_parquet, cells, name)


def _from_parquet(cells: list[Any], name: str) -> list[Image.Image]:
    if not all(isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes) for cell in cells):
        raise AdaptPruneError(f"{name!r} has no picture in it: download the file again.")
    return [decode_image(cell["bytes"], name) for cell in cells]
