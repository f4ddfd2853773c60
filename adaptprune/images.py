"""Opening pictures that a user names: files, http(s) addresses and our examples; every failure is said in one line."""

from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.parse
import urllib.request
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from adaptprune._version import __version__
from adaptprune.errors import AdaptPruneError
from adaptprune.registry import did_you_mean

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 100_000_000
MAX_ASPECT = 100  # models scale the shorter side to a few hundred pixels, and the other with it
TIMEOUT_SECONDS = 20


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
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The picture in `data`; `name` is for error messages. See `open_image`.

    Parameters
    ----------
    max_pixels : int
        Larger pictures are refused before they are decoded.
    formats : tuple of str, optional
        Pillow's names of the formats to try; None: all that it knows, some of which start other programs.
    """
    if not data:
        raise AdaptPruneError(f"{name!r} is empty: it has no bytes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
            opened = Image.open(io.BytesIO(data), formats=formats)
        with opened as picture:
            width, height = picture.size  # from the header: nothing is decoded yet
            if width * height > max_pixels:
                raise AdaptPruneError(
                    f"{name!r} has {width} x {height} pixels, more than the {max_pixels:,} "
                    "that are allowed: make it smaller."
                )
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise AdaptPruneError(
                    f"{name!r} has {width} x {height} pixels: no side may be more than {MAX_ASPECT} times the other."
                )
            picture.load()
            upright = _eight_bit(ImageOps.exif_transpose(picture))
            if "A" in upright.getbands() or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            return upright.convert("RGB")
    except AdaptPruneError:
        raise
    except UnidentifiedImageError:
        raise AdaptPruneError(f"{name!r} is not an image that can be read: use PNG, JPEG, WebP, GIF or BMP.") from None
    except Image.DecompressionBombError:
        raise AdaptPruneError(
            f"{name!r} has more than the {max_pixels:,} pixels that are allowed: make it smaller."
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what PIL's decoders raise on damaged files
        raise AdaptPruneError(f"{name!r} is damaged or cut off ({error}): save or download it again.") from None


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Integer and float pictures scaled to 0..255; Pillow would clip them. Others as they are."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, dtype=np.float64)
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
