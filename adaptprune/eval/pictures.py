"""The pictures that questions name: files of a folder, cells of a table. Question files are downloads: not trusted."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.eval.files import tsv_cell
from adaptprune.images import decode_image, open_image

Opener = Callable[[], list[Image.Image]]
SEPARATORS = re.compile(r"[/\\]")  # Windows' too: names were written anywhere


def named(row: Mapping[str, Any]) -> list[str]:
    """The pictures that a record names under ``image`` or ``images``: one, several, or none."""
    found = row["image"] if "image" in row else row.get("images")
    names = found if isinstance(found, list) else [] if found is None or found == "" else [found]
    for name in names:
        if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
            raise TypeError(f"its 'image' has {name!r} in it, which is no name of a picture")
    return [str(name) for name in names]


def of_row(folder: Path, row: Mapping[str, Any]) -> tuple[str, Opener]:
    """What a record's pictures are called together, and their opener; an error if it names none."""
    names = named(row)
    if not names:
        if "image" not in row:
            raise KeyError("image")
        raise ValueError("its 'image' names no picture")
    return "+".join(names), partial(from_files, folder, names)


def from_files(folder: Path, names: Sequence[str]) -> list[Image.Image]:
    """The pictures in a folder. Links are followed wherever they lead; a name must not lead out by itself."""
    return [open_image(find(folder, name)) for name in names]


def find(folder: Path, name: str) -> Path:
    """The file that a question file calls `name`.

    Raises
    ------
    AdaptPruneError
        The name is absolute or has ``..`` in it, there is no such file, or a link on the way leads nowhere.
    """
    inside(folder, name)
    # absolute: a name such as ~/x or example:y is then no more than a name
    path = folder.absolute() / name
    try:
        if not path.exists() and "\\" in name and (other := folder.absolute() / name.replace("\\", "/")).exists():
            return other
        if not path.exists():
            for step in (*reversed(path.parents), path):
                if step.is_symlink() and not step.exists():
                    raise AdaptPruneError(
                        f"{str(step)!r} is a link to {str(step.readlink())!r}, which is not there: fetch what it "
                        "points to (git annex get, git lfs pull, or download it again)."
                    )
    except OSError as error:
        raise AdaptPruneError(f"cannot read the picture {_short(name)!r}: {error.strerror or error}.") from None
    return path


def inside(folder: Path, name: str) -> str:
    """The name itself; refused if it is absolute or climbs."""
    parts = SEPARATORS.split(name)
    if ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:[/\\]", name) or Path(name).drive:
        raise AdaptPruneError(
            f"the picture {_short(name)!r} is outside of {str(folder)!r}: its name is absolute or has '..' in it."
        )
    if "\0" in name:
        raise AdaptPruneError(f"the picture {_short(name)!r} has a zero byte in its name.")
    return name


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:80]}…"


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
