"""Throws damaged pictures at the decoder: whatever the bytes, it opens them or refuses them in one line of ours.

`python -m tools.fuzz_images --count 100000 --seed 0` prints one line of JSON: how many of each format were opened,
refused, and escaped with an exception that is not ours, and the slowest. The exit code is 1 if one escaped. Picture N
of a seed is the same whatever the count: `--only N` decodes it alone, `--write FILE` keeps it.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, features

from adaptprune.errors import AdaptPruneError
from adaptprune.images import decode_image

#: Values at which arithmetic on lengths and offsets goes wrong.
NUMBERS = (0, 1, 2, 3, 6, 7, 8, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
#: Tags of EXIF that decoders look into: orientation, resolutions, software, date, Exif, GPS, interoperability, notes.
TAGS = (0x0112, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x8769, 0x8825, 0xA005, 0x927C, 0x02BC, 0x0201, 0x0000, 0xFFFF)


def sources() -> dict[str, Callable[[random.Random], bytes]]:
    """A writer of sound files for every format, each of which draws its variant."""
    found: dict[str, Callable[[random.Random], bytes]] = {
        "png": lambda draw: _saved(
            draw, "PNG", ("RGB", "RGBA", "P", "L", "1", "I;16"), exif=draw.choice([exif(draw), b""]), optimize=False
        ),
        "jpeg": lambda draw: _saved(
            draw, "JPEG", ("RGB", "L", "CMYK"), exif=exif(draw), progressive=draw.random() < 0.5, comment=b"seen"
        ),
        "gif": lambda draw: _saved(draw, "GIF", ("P", "L", "RGBA"), more=draw.randrange(3), comment=b"seen"),
        "bmp": lambda draw: _saved(draw, "BMP", ("RGB", "L", "P", "1")),
        "tiff": lambda draw: _saved(
            draw,
            "TIFF",
            ("RGB", "L", "CMYK", "I;16", "F", "1"),
            more=draw.randrange(2),
            exif=draw.choice([_orientation(draw), b""]),
            compression=draw.choice([None, "tiff_lzw", "tiff_deflate", "packbits"]),
        ),
        "ico": lambda draw: _saved(draw, "ICO", ("RGBA",), bitmap_format=draw.choice(["png", "bmp"])),
        "ppm": lambda draw: _saved(draw, "PPM", ("RGB", "L", "1", "I;16")),
        "tga": lambda draw: _saved(draw, "TGA", ("RGB", "L", "P", "RGBA"), compression=draw.choice([None, "tga_rle"])),
        "pcx": lambda draw: _saved(draw, "PCX", ("RGB", "L", "P", "1")),
    }
    if features.check("webp"):
        found["webp"] = lambda draw: _saved(
            draw, "WEBP", ("RGB", "RGBA"), exif=exif(draw), lossless=draw.random() < 0.5, more=draw.randrange(2)
        )
    if features.check("jpg_2000"):
        found["jpeg2000"] = lambda draw: _saved(draw, "JPEG2000", ("RGB", "L", "RGBA"))
    if features.check("avif"):
        found["avif"] = lambda draw: _saved(draw, "AVIF", ("RGB", "RGBA"), exif=_orientation(draw), speed=10)
    return found


def _saved(draw: random.Random, form: str, modes: tuple[str, ...], *, more: int = 0, **options: Any) -> bytes:
    mode = draw.choice(modes)
    size = draw.randrange(1, 40), draw.randrange(1, 40)
    images = []
    for _ in range(1 + more):
        pixels = Image.frombytes("L", size, draw.randbytes(size[0] * size[1]))
        images.append(pixels.convert("RGB").convert(mode) if mode not in ("I;16", "F") else pixels.convert(mode))
    if more:
        options.update(save_all=True, append_images=images[1:])
    buffer = io.BytesIO()
    images[0].save(buffer, form, **options)
    return buffer.getvalue()


def exif(draw: random.Random) -> bytes:
    """An EXIF block of a few entries of which tags, types, counts and values need not fit each other."""
    order = draw.choice("<>")
    entries: list[bytes] = []
    tail = b""
    number = draw.randrange(1, 6)
    for tag in [0x0112, *draw.choices(TAGS, k=number - 1)]:
        kind, count = draw.choice([2, 3, 4, 5, 7, 8, 9, 10, draw.randrange(256)]), draw.choice([1, 1, 2, 5, 70000])
        place = 8 + 2 + 12 * number + 4 + len(tail)
        value = draw.choice([struct.pack(order + "L", place), draw.randbytes(4), struct.pack(order + "HH", 6, 0)])
        if not entries and draw.random() < 0.6:  # an orientation that asks for a turn, before what is odd
            kind, count, value = 3, 1, struct.pack(order + "HH", draw.randrange(2, 9), 0)
        tail += draw.randbytes(8)
        entries.append(struct.pack(order + "HHL", tag, kind, count) + value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    table = struct.pack(order + "H", number) + b"".join(entries)
    return b"Exif\0\0" + head + table + struct.pack(order + "L", draw.choice([0, 8, 70000])) + tail


def _orientation(draw: random.Random) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = draw.randrange(10)
    return tags


# -- damage -----------------------------------------------------------------------------------------------------------


def _bytes_changed(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _bits_changed_early(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    """In the header, where lengths and kinds stand."""
    for _ in range(draw.choice([1, 2, 3])):
        data[draw.randrange(min(len(data), 64))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _number_set(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    """Two, four or eight bytes anywhere become an awkward number: lengths, sizes, offsets, counts."""
    width = draw.choice([2, 4, 8])
    value = draw.choice([*NUMBERS, len(data), len(data) - 1, draw.getrandbits(32)])
    place = draw.randrange(draw.choice([min(len(data), 128), len(data)]))
    data[place : place + width] = (value % 256**width).to_bytes(width, draw.choice(["little", "big"]))
    return bytes(data)


def _cut(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: draw.randrange(len(data) + 1)])


def _removed(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    start = draw.randrange(len(data))
    del data[start : start + draw.choice([1, 2, 4, 12, 100])]
    return bytes(data)


def _repeated(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    start = draw.randrange(len(data))
    piece = data[start : start + draw.choice([4, 12, 64, 256])]
    data[start:start] = piece * draw.choice([1, 2, 30])
    return bytes(data)


def _spliced(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    """The beginning of this file, and the end of another, perhaps of another format."""
    return bytes(data[: draw.randrange(len(data))]) + other[draw.randrange(len(other)) :]


def _exif_replaced(draw: random.Random, data: bytearray, other: bytes) -> bytes:
    """Another table where one begins, its length as it was."""
    place = max(bytes(data).find(b"II*\0"), bytes(data).find(b"MM\0*"))
    table = exif(draw)[6:]
    if place >= 0:
        data[place : place + len(table)] = table
    return bytes(data)


DAMAGE = (
    _bytes_changed,
    _bits_changed_early,
    _number_set,
    _number_set,
    _cut,
    _removed,
    _repeated,
    _spliced,
    _exif_replaced,
)


def picture(seed: int, number: int) -> tuple[str, bytes]:
    """The format and the bytes of one damaged picture."""
    draw = random.Random(f"{seed}/{number}")
    writers = sources()
    names = sorted(writers)
    form = names[number % len(names)]
    data = _sound(writers, form, draw)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        other = _sound(writers, draw.choice(names), draw) if draw.random() < 0.3 else data
        data = draw.choice(DAMAGE)(draw, bytearray(data or b"\0"), other or b"\0")
    return form, data


#: Sound files, drawn once each: writing one takes longer than damaging it.
_SOUND: dict[tuple[str, int], bytes] = {}
VARIANTS = 40


def _sound(writers: dict[str, Callable[[random.Random], bytes]], form: str, draw: random.Random) -> bytes:
    variant = draw.randrange(VARIANTS)
    if (form, variant) not in _SOUND:
        _SOUND[form, variant] = writers[form](random.Random(f"{form}/{variant}"))
    return _SOUND[form, variant]


# -- running ----------------------------------------------------------------------------------------------------------


def outcome(data: bytes) -> tuple[str, str]:
    """ "opened", "refused" or "escaped", and what was said."""
    try:
        found = decode_image(data, "picture")
    except AdaptPruneError as error:
        text = str(error)
        return ("refused" if "\n" not in text and text.startswith("'picture' ") else "escaped"), text
    except Exception as error:
        return "escaped", f"{type(error).__name__}: {error}"
    return ("opened" if found.mode == "RGB" and min(found.size) > 0 else "escaped"), f"{found.mode} {found.size}"


def fuzz(seed: int, numbers: range) -> dict[str, Any]:
    """Decode these pictures of a seed; the summary is plain data."""
    formats: dict[str, Counter[str]] = {name: Counter(opened=0, refused=0, escaped=0) for name in sorted(sources())}
    slowest, escaped = (0.0, -1), []
    started = time.perf_counter()
    for number in numbers:
        form, data = picture(seed, number)
        before = time.perf_counter()
        result, text = outcome(data)
        slowest = max(slowest, (time.perf_counter() - before, number))
        formats[form][result] += 1
        if result == "escaped":
            escaped.append({"number": number, "format": form, "said": text})
    return {
        "seed": seed,
        "count": len(numbers),
        **{key: sum(counts[key] for counts in formats.values()) for key in ("opened", "refused", "escaped")},
        "formats": {name: dict(counts) for name, counts in formats.items()},
        "escapes": escaped[:20],
        "slowest": {"seconds": round(slowest[0], 4), "number": slowest[1]},
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="decode this picture of the seed alone")
    parser.add_argument("--write", type=Path, help="with --only: keep the picture here")
    given = parser.parse_args(arguments)
    if given.only is not None and given.write is not None:
        given.write.write_bytes(picture(given.seed, given.only)[1])
    numbers = range(given.count) if given.only is None else range(given.only, given.only + 1)
    summary = fuzz(given.seed, numbers)
    print(json.dumps(summary))
    return 1 if summary["escaped"] else 0


if __name__ == "__main__":
    sys.exit(main())
