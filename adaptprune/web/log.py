"""The conversation log: a JSON object per line, files that rotate, images by their hash. It never stops a chat."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from adaptprune.errors import AdaptPruneError

log = logging.getLogger(__name__)

FILE = "conversations.jsonl"
MAX_BYTES = 50 * 2**20  # of one file
FILES = 20  # older ones are deleted
MAX_IMAGE_BYTES = 2 * 2**30  # of all images; beyond that only their hashes are written


class ConversationLog:
    """Writes events to ``conversations.jsonl`` and images to ``images/HASH.SUFFIX``.

    Parameters
    ----------
    folder : Path or None
        Made if it is not there, for its owner alone. None writes nothing.

    Raises
    ------
    AdaptPruneError
        The folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        max_bytes: int = MAX_BYTES,
        files: int = FILES,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self.folder = folder
        self._left = max_image_bytes
        self._handler: _Lines | None = None
        if folder is None:
            return
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._left -= sum(path.stat().st_size for path in (folder / "images").iterdir())
            self._handler = _Lines(
                folder / FILE,
                maxBytes=max_bytes,
                backupCount=files - 1,
                encoding="utf-8",
                errors="backslashreplace",  # half a character becomes JSON's own escape for it
            )
        except OSError as error:
            raise AdaptPruneError(
                f"conversations cannot be written to {str(folder)!r} ({error.strerror}): give another --log-folder, or "
                "leave out --log."
            ) from None

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self._handler is not None

    def write(self, event: str, conversation: str, images: Sequence[str] = (), **record: Any) -> bool:
        """Add a line.

        Parameters
        ----------
        event : str
            "answer", "compare", "upvote", ...
        conversation : str
            Its id.
        images : sequence of str
            Files of the images that were shown.
        **record
            Plain types.

        Returns
        -------
        bool
            Whether it was written.
        """
        if self._handler is None:
            return False
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "conversation": conversation}
        if images:
            line["images"] = [self._keep(Path(image)) for image in images]  # type: ignore[assignment]
        self._handler.failed = False
        self._handler.handle(logging.makeLogRecord({"msg": json.dumps({**line, **record}, ensure_ascii=False)}))
        return not self._handler.failed

    def _keep(self, image: Path) -> str | None:
        """Store an image under its hash; the hash, or None if it is gone."""
        assert self.folder is not None
        try:
            with image.open("rb") as file:
                name = (
                    hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _hash(file)
                )
            target = self.folder / "images" / f"{name}{image.suffix.lower()}"
            size = image.stat().st_size
            if not target.exists() and size <= self._left:
                partial = target.with_suffix(".partial")
                shutil.copyfile(image, partial)
                partial.replace(target)
                self._left -= size
            return name
        except OSError as error:
            log.warning("an image could not be logged: %s", error)
            return None

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()


def _hash(file: Any) -> str:
    return hashlib.sha256(file.read()).hexdigest()  # Python 3.10


class _Lines(RotatingFileHandler):
    """Says that a line was lost instead of printing a traceback for it."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        self.failed = True
        log.warning("the conversation log could not be written", exc_info=True)
