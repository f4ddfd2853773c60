"""Files that commands are asked to write: looked at before anything slow is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError


def check_output(path: Path | None, option: str, suffix: str) -> None:
    """Raise AdaptPruneError if a file of that name cannot be meant; None is no file."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise AdaptPruneError(f"{option} {str(path)!r} is not allowed: the name has to end in {suffix}.")
    if path.is_dir():
        raise AdaptPruneError(f"{option} {str(path)!r} is a folder: name a file in it.")
    if not path.absolute().parent.is_dir():
        raise AdaptPruneError(f"there is no folder {str(path.absolute().parent)!r} for {option}: create it first.")


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture as PNG; a failure names the file."""
    from adaptprune.disk import writing

    with writing(path):
        picture.save(path, "PNG")
