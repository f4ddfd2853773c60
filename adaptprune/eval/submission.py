"""Writers of the files that servers and other evaluation scripts take, in the exact form of LLaVA's convert scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptprune.disk import make_folder, write_whole, writing
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.task import Item

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # an xlsx file cannot hold these
Entry = Callable[[Item, str], Any]


class _Text:
    """A file that is written while answers come in and gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path, self._part = path, path.with_name(path.name + ".part")
        with writing(self._part):
            self._file = self._part.open("w", encoding="utf-8")
        self._count = 0

    def _write(self, text: str) -> None:
        with writing(self._path):
            self._file.write(text)
        self._count += 1

    def close(self) -> None:
        with writing(self._path):
            self._file.close()
            self._part.replace(self._path)


class JsonList(_Text):
    """One JSON list with an entry per question, as `json.dump` writes it."""

    def __init__(self, path: Path, entry: Entry) -> None:
        super().__init__(path)
        self._entry = entry

    def add(self, item: Item, answer: str) -> None:
        self._write(("[" if self._count == 0 else ", ") + json.dumps(self._entry(item, answer)))

    def close(self) -> None:
        self._write("]" if self._count else "[]")
        super().close()


class JsonLines(_Text):
    """One JSON object per line and question."""

    def __init__(self, path: Path, entry: Entry) -> None:
        super().__init__(path)
        self._entry = entry

    def add(self, item: Item, answer: str) -> None:
        self._write(json.dumps(self._entry(item, answer)) + "\n")


class JsonObject(_Text):
    """One JSON object with a member per question, two spaces of indent; `entry` gives its name and value."""

    def __init__(self, path: Path, entry: Entry) -> None:
        super().__init__(path)
        self._entry = entry

    def add(self, item: Item, answer: str) -> None:
        name, value = self._entry(item, answer)
        self._write(("{\n  " if self._count == 0 else ",\n  ") + f"{json.dumps(name)}: {json.dumps(value)}")

    def close(self) -> None:
        self._write("\n}" if self._count else "{}")
        super().close()


class Sheet:
    """An xlsx file with one sheet, "Sheet1", a header and a row per question."""

    def __init__(self, path: Path, header: list[str], entry: Entry) -> None:
        self._path, self._entry = path, entry
        with writing(path):  # rows wait in a file of the system's folder for such
            self._book = workbook()
        self._sheet = self._book.create_sheet("Sheet1")
        self._sheet.append(header)

    def add(self, item: Item, answer: str) -> None:
        cells = self._entry(item, answer)
        with writing(self._path):
            self._sheet.append([CONTROL.sub("", cell) if isinstance(cell, str) else cell for cell in cells])

    def close(self) -> None:
        write_whole(self._path, self._book.save)


def workbook() -> Any:
    """An empty xlsx file, or an error that says how to install what it needs."""
    try:
        from openpyxl import Workbook
    except ImportError:
        raise AdaptPruneError("the xlsx file for the server needs openpyxl: pip install 'adaptprune[eval]'.") from None
    return Workbook(write_only=True)
