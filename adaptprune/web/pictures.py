"""Small copies of the pictures that the page shows, as files that it serves."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from adaptprune.errors import AdaptPruneError
from adaptprune.images import WEB_FORMATS, decode_image
from adaptprune.web.talk import IMAGES

#: Longest side of a thumbnail and of an overlay, in pixels.
THUMBNAIL, OVERLAY = 240, 1600


class Pictures:
    """Makes the copies.

    Parameters
    ----------
    folder : Path
        Gradio's cache, from which it serves files.
    made : set of str
        Where Gradio looks for files to delete when they are old.
    """

    def __init__(self, folder: Path, made: set[str]) -> None:
        self._folder, self._made = folder, made
        self._thumbnails: dict[str, str] = {}

    def thumbnail(self, file: str) -> str:
        """Where the page has a small copy of an image file; empty if that cannot be read."""
        if file not in self._thumbnails:
            try:
                data = Path(file).read_bytes()
                image = decode_image(data, Path(file).name, max_pixels=IMAGES.max_pixels, formats=WEB_FORMATS)
            except (OSError, AdaptPruneError):
                return ""  # the answer's own error says it
            self._thumbnails[file] = self.keep(image, THUMBNAIL, "picture.jpg")
        return self._thumbnails[file]

    def keep(self, image: Image.Image, side: int = OVERLAY, name: str = "kept.jpg") -> str:
        """Where the page has a copy of an image, no side longer than `side`; under `name` it is downloaded."""
        copy = image.convert("RGB")
        copy.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=88)
        target = self._folder / hashlib.sha256(buffer.getvalue()).hexdigest() / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(buffer.getvalue())
        self._made.add(str(target))
        return f"gradio_api/file={quote(str(target))}"
