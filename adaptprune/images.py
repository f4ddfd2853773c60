"""Opening pictures that a user names: files, http(s) addresses and our examples; every failure is said in one line.

`decode_image` is the one place where bytes become a picture.
"""

from __future__ import annotations

import base64
import http.client
import io
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from adaptprune._version import __version__
from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.metadata import exif_orientation, separate, xmp_orientation
from adaptprune.registry import did_you_mean

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100  # models scale the shorter side to a few hundred pixels, and the other with it
TIMEOUT_SECONDS = 20
#: What strangers may send: what browsers show. AVIF depends on how Pillow was built.
WEB_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
#: What is tried otherwise: pictures made of pixels. Pillow's other formats start programs, or only tell of a file.
FORMATS = (
    *WEB_FORMATS,
    "DIB",
    "TIFF",
    "JPEG2000",
    "ICO",
    "PPM",
    "PCX",
    "SGI",
    "QOI",
    "PSD",
    "DDS",
    "SUN",
    "XBM",
    "TGA",
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | Path) -> Image.Image:
    """The picture at a path or address, as RGB, turned upright; transparency becomes white.

    Parameters
    ----------
    source : str or Path
        A file, an http(s) address, or ``example:NAME`` for a picture that comes with the package.

    Raises
    ------
    AdaptPruneError
        The source cannot be read or fetched, is empty, truncated, no image, or above `MAX_BYTES` or `MAX_PIXELS`.
    """
    name = str(source)
    scheme = name.partition(":")[0].lower()
    if scheme == "example":
        data = _read(_example(name.partition(":")[2]))
    elif scheme in ("http", "https"):
        data = _fetch(name)
    elif "://" in name:
        raise AdaptPruneError(f"cannot open {name!r}: give a plain path, or an http:// or https:// address.")
    else:
        data = _read(name)
    return decode_image(data, name)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The picture in `data`, the first of several; `name` is for error messages. See `open_image`.

    It is turned as its EXIF, or else its XMP, says; nothing else of these is read, and what cannot be read of them
    leaves the picture as it is.

    Parameters
    ----------
    max_pixels : int
        Larger pictures are refused before they are decoded.
    formats : tuple of str
        Pillow's names of the formats to try; those that it was built without are passed over.

    Raises
    ------
    AdaptPruneError
        Whatever is wrong with the bytes; no other exception leaves.
    """
    if not data:
        raise AdaptPruneError(f"{name!r} is empty: it has no bytes.")
    try:
        return _decoded(data, max_pixels, formats)
    except AdaptPruneError as error:
        raise AdaptPruneError(f"{name!r} {error}") from None
    except UnidentifiedImageError:
        raise AdaptPruneError(f"{name!r} is not an image that can be read: use {_named(formats)}.") from None
    except (MemoryError, Image.DecompressionBombError):
        raise AdaptPruneError(
            f"{name!r} needs more memory than there is, or has more than the {max_pixels:,} pixels that are allowed: "
            "make it smaller."
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise AdaptPruneError(
            f"{name!r} is damaged or cut off ({first_line(error)}): save or download it again."
        ) from None


class _Quiet:
    """Pillow's warnings, of sizes (which are checked here) and of oddities (which harm nobody), off in all threads.

    The first thread in puts the filter up and the last one out takes it down: `warnings.catch_warnings` alone, entered
    and left by several threads in turn, would leave the filter up for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(*error)


_QUIET = _Quiet()


def _decoded(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    plain, orientation = separate(data)
    Image.init()
    known = [form for form in formats if form in Image.OPEN]
    with _QUIET, Image.open(io.BytesIO(plain), formats=known) as picture:
        _check_size(picture, max_pixels)  # from the header: nothing is decoded yet
        picture.load()
        _check_size(picture, max_pixels)  # an icon's header may say less than the picture inside
        upright = _eight_bit(picture)
        info = picture.info
        turn = orientation or exif_orientation(_bytes(info.get("exif"))) or xmp_orientation(_bytes(info.get("xmp")))
        if turn in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[turn])
        if "A" in upright.getbands() or "a" in upright.getbands() or "transparency" in upright.info:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return upright.convert("RGB")


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise AdaptPruneError(
            f"has {width} x {height} pixels, more than the {max_pixels:,} that are allowed: make it smaller."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise AdaptPruneError(f"has {width} x {height} pixels: no side may be more than {MAX_ASPECT} times the other.")


def _named(formats: tuple[str, ...]) -> str:
    """The formats that are tried, as a sentence has them; of many, those that strangers may send."""
    known = [form for form in WEB_FORMATS if form in formats and form in Image.OPEN] or list(formats)
    return f"{', '.join(known[:-1])} or {known[-1]}" if len(known) > 1 else known[0]


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Integer and float pictures scaled to 0..255; Pillow would clip them. Others as they are."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0)
    top = float(values.max(initial=0.0))
    full = 1.0 if top <= 1 and picture.mode == "F" else 255.0 if top <= 255 and picture.mode != "I;16" else 65535.0
    return Image.fromarray((values / full * 255).clip(0, 255).round().astype(np.uint8))


def _example(name: str) -> Path:
    folder = Path(str(files("adaptprune.assets"))) / "examples"
    known = {path.stem: path for path in sorted(folder.glob("*.png"))}
    if name not in known:
        raise AdaptPruneError(f"unknown example {name!r}.{did_you_mean(name, known)}")
    return known[name]


def _read(name: str | Path) -> bytes:
    try:
        path = Path(name).expanduser()
        if path.exists() and not path.is_file():
            raise AdaptPruneError(f"cannot read {str(path)!r}: it is not a file.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise AdaptPruneError(f"there is no file {str(name)!r}: check the path.") from None
    except AdaptPruneError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in it; RuntimeError: no such home
        raise AdaptPruneError(f"cannot read {str(name)!r}: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > MAX_BYTES:
        raise AdaptPruneError(f"{str(name)!r} has more than the {MAX_BYTES:,} bytes that are allowed.")
    return data


def _fetch(url: str) -> bytes:
    try:
        # letters beyond ASCII and spaces, as they are copied from an address bar
        address = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
        request = urllib.request.Request(address, headers={"User-Agent": f"adaptprune/{__version__}"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise AdaptPruneError(f"{url!r} answered {error.code} {error.reason}: check the address.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AdaptPruneError(f"cannot fetch {url!r}: {getattr(error, 'reason', error)}.") from None
    if len(data) > MAX_BYTES:
        raise AdaptPruneError(f"{url!r} has more than the {MAX_BYTES:,} bytes that are allowed.")
    return data


def data_url(picture: Image.Image, kind: str = "png", **options: Any) -> str:
    """A picture as an address that holds it: for pages and messages."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
