"""Bytes that are meant to break a decoder, and metadata that breaks one by itself: one line of ours, or the picture."""

from __future__ import annotations

import base64
import functools
import io
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from adaptprune import AdaptPruneError
from adaptprune import images as module
from adaptprune.engines import client as client_module
from adaptprune.images import WEB_FORMATS, decode_image
from adaptprune.metadata import MAX_ASIDE, exif_orientation, separate
from tools import fuzz_images

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)).resize((80, 48))
FLAT = Image.new("RGB", (16, 16), (10, 20, 30))
AVIF = pytest.param("AVIF", {}, marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def table(*entries: tuple[int, int, int, bytes], order: str = "<", size: int = 0) -> bytes:
    """A TIFF's table of tags: tag, type, count and the four bytes of the value."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(entries))
    body = b"".join(struct.pack(order + "HHL", *entry[:3]) + entry[3] for entry in entries)
    return (head + body + b"\0" * 4).ljust(size, b"\0")


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("MPO", {"save_all": True, "append_images": [FLAT]}),
        AVIF,
    ],
)
def test_pictures_are_turned_as_pillow_turns_them(form, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, form, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    found = decode_image(data, "x")
    assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, 2, 4, b"abcd"),  # a resolution that is a text
        (0x0128, 8, 1, b"\xfe\xff\0\0"),  # a negative short
        (0x0132, 3, 1, b"\1\0\0\0"),  # a date that is a number
        (0x8825, 4, 1, b"\xff\xff\xff\x7f"),  # GPS beyond the end
        (0x8825, 2, 3, b"N\0\0\0"),  # GPS that is a text
        (0x8769, 7, 70000, b"\1\0\0\0"),
        (0x9999, 99, 1, b"\0\0\0\0"),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_rewritten_does_not_matter(form, odd):
    assert decode_image(encoded(NOISE, form, exif=b"Exif\0\0" + table(TURNED, odd)), "x").size == (48, 80)


@pytest.mark.parametrize(
    "entry",
    [
        (0x0112, 2, 1, b"6\0\0\0"),
        (0x0112, 3, 1, b"\x09\0\0\0"),
        (0x0112, 5, 1, b"\6\0\0\0"),
        (0x0112, 3, 2, b"\6\0\6\0"),
    ],
)
def test_an_orientation_that_cannot_be_read_leaves_the_picture_as_it_is(entry):
    for form in ("JPEG", "PNG", "WEBP"):
        assert decode_image(encoded(NOISE, form, exif=b"Exif\0\0" + table(entry)), "x").size == (80, 48)


def test_orientations_of_either_byte_order_and_whole_type():
    assert exif_orientation(table(TURNED)) == exif_orientation(b"Exif\0\0" + table(TURNED)) == 6
    for kind, value in [(1, b"\6\0\0\0"), (3, b"\0\6\0\0"), (4, b"\0\0\0\6"), (8, b"\0\6\0\0")]:
        assert exif_orientation(table((0x0112, kind, 1, value), order=">")) == 6
    for broken in (b"", b"II", b"II*\0\xff\xff\xff\xff", table(TURNED)[:12]):
        assert exif_orientation(broken) is None


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def test_xmp_turns_a_picture_whose_exif_says_nothing():
    def packet(value: int) -> bytes:
        return XMP % value

    assert decode_image(encoded(NOISE, "JPEG", xmp=packet(6)), "x").size == (48, 80)
    assert decode_image(encoded(NOISE, "WEBP", xmp=packet(6)), "x").size == (48, 80)
    assert decode_image(encoded(NOISE, "JPEG", xmp=packet(9)), "x").size == (80, 48)
    both = encoded(NOISE, "JPEG", xmp=packet(6), exif=b"Exif\0\0" + table((0x0112, 3, 1, b"\1\0\0\0")))
    assert decode_image(both, "x").size == (80, 48)
    png = encoded(NOISE)
    for body in (b"XML:com.adobe.xmp\0\0\0\0\0" + packet(6), b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet(6))):
        assert decode_image(png[:33] + chunk(b"iTXt", body) + png[33:], "x").size == (48, 80)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_imagemagick_writes_exif_into_a_png_as_digits():
    digits = (b"Exif\0\0" + table(TURNED)).hex().encode()
    png, text = encoded(NOISE), b"\nexif\n      %d\n" % (len(digits) // 2) + digits
    for kind, body in [(b"tEXt", text), (b"zTXt", b"\0" + zlib.compress(text))]:
        data = png[:33] + chunk(kind, b"Raw profile type exif\0" + body) + png[33:]
        assert decode_image(data, "x").size == (48, 80)


# -- bombs ------------------------------------------------------------------------------------------------------------


@functools.cache
def tags_that_repeat_the_file(number: int = 60_000, size: int = 16 * 2**20) -> bytes:
    return table(*((0x1000 + i % 0x7000, 7, size - 2**20, b"\x08\0\0\0") for i in range(number)), size=size)


def jpeg(*segments: bytes) -> bytes:
    return encoded(FLAT, "JPEG")[:2] + b"".join(segments) + encoded(FLAT, "JPEG")[20:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def gif(*extensions: bytes) -> bytes:
    data = encoded(FLAT, "GIF")
    end = 13 + (3 << ((data[10] & 7) + 1))
    return data[:end] + b"".join(extensions) + data[end:]


def tiff_with(extra: bytes, number: int) -> bytes:
    """`number` further entries for a TIFF's table, and bytes for them to point at."""
    data = encoded(FLAT, "TIFF")
    start = struct.unpack_from("<L", data, 4)[0]
    known = struct.unpack_from("<H", data, start)[0]
    own, end = data[start + 2 : start + 2 + 12 * known], b"\0" * (16 * 2**20)
    place = len(data) + len(end)
    entries = struct.pack("<H", known + number) + own + extra + b"\0" * 4
    return data[:4] + struct.pack("<L", place) + data[8:] + end + entries


BOMB = zlib.compress(bytes(2**28))
PNG = encoded(FLAT)
BOMBS = {
    "EXIF of a JPEG": lambda: jpeg(
        *(segment(0xE1, b"Exif\0\0" + tags_that_repeat_the_file()[i : i + 65000]) for i in range(0, 3 * 2**20, 65000))
    ),
    "a million segments": lambda: jpeg(segment(0xE1, b"Exif\0\0x") * 1_000_000),
    "comments of a JPEG": lambda: jpeg(segment(0xFE, b"") * 90_000),
    "EXIF of a PNG": lambda: PNG[:33] + chunk(b"eXIf", tags_that_repeat_the_file()) + PNG[33:],
    "texts of a PNG": lambda: PNG[:33] + chunk(b"zTXt", b"k\0\0" + BOMB) * 8 + PNG[33:],
    "a profile of a PNG": lambda: PNG[:33] + chunk(b"iCCP", b"k\0\0" + BOMB) + PNG[33:],
    "EXIF of a PNG in digits": lambda: PNG[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB) * 20 + PNG[33:],
    "a million chunks": lambda: PNG[:33] + chunk(b"tEXt", b"a\0b") * 1_000_000 + PNG[33:],
    "a comment of a GIF": lambda: gif(b"\x21\xfe" + (b"\xff" + b"x" * 255) * 200_000 + b"\0"),
    "tags of a TIFF": lambda: tiff_with(
        b"".join(struct.pack("<HHLL", 1000 + i, 7, 15 * 2**20, 8) for i in range(60_000)), 60_000
    ),
    "EXIF of a WebP": lambda: encoded(FLAT, "WEBP", lossless=True, exif=tags_that_repeat_the_file()),
}

LIMITED = """
import resource, sys, time
from adaptprune.errors import AdaptPruneError
from adaptprune.images import decode_image
data = sys.stdin.buffer.read()
decode_image(open(sys.argv[1], "rb").read(), "warm")
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    said = str(decode_image(data, "bomb").getpixel((3, 3)))
except AdaptPruneError as error:
    said = str(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start, said, sep="|")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
@pytest.mark.parametrize("name", BOMBS)
def test_what_lies_besides_the_pixels_costs_neither_memory_nor_time(name, tmp_path):
    """A few megabytes ask for gigabytes, or for work that grows with their square."""
    (tmp_path / "warm.png").write_bytes(PNG)
    data = BOMBS[name]()
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "warm.png")], input=data, capture_output=True, timeout=60
    )
    kilobytes, seconds, said = result.stdout.decode().split("|")
    assert int(kilobytes) * 1024 < 4 * len(data) + 2**26, result.stderr
    assert float(seconds) < 5
    assert said.startswith("(1") or "carries too much besides pixels" in said


def test_a_large_but_honest_comment_is_no_bomb():
    assert decode_image(gif(b"\x21\xfe" + (b"\xff" + b"x" * 255) * (MAX_ASIDE // 512) + b"\0"), "x").size == (16, 16)


def test_sound_files_lose_nothing_that_makes_their_pixels():
    """Colour tables, transparency and Adobe's segment stay."""
    for form, image in [
        ("PNG", NOISE.quantize(16)),
        ("GIF", NOISE.quantize(16)),
        ("JPEG", NOISE.convert("CMYK")),
        ("TIFF", NOISE.convert("CMYK")),
    ]:
        data = encoded(image, form)
        plain, _ = separate(data)
        assert (
            Image.open(io.BytesIO(plain)).convert("RGB").tobytes()
            == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
        )
    clear = Image.new("P", (4, 4), 1)
    clear.putpalette([0, 0, 0, 255, 0, 0])
    for form in ("PNG", "GIF"):
        assert decode_image(encoded(clear, form, transparency=1), "x").getpixel((0, 0)) == (255, 255, 255)


# -- whatever the bytes -----------------------------------------------------------------------------------------------


def test_damaged_pictures_are_opened_or_refused_in_one_line(capsys):
    """A slice of what `python -m tools.fuzz_images --count 100000` does."""
    assert fuzz_images.main(["--count", "2000", "--seed", "7"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["escaped"] == 0
    assert len(summary["formats"]) >= 10
    assert all(counts["opened"] and counts["refused"] for counts in summary["formats"].values()), summary["formats"]
    assert summary["slowest"]["seconds"] < 2


def test_an_escape_is_found_and_reported(monkeypatch, capsys):
    def fails(data, name):
        raise KeyError("from a decoder")

    monkeypatch.setattr(fuzz_images, "decode_image", fails)
    assert fuzz_images.main(["--count", "24"]) == 1
    assert json.loads(capsys.readouterr().out)["escapes"][0]["said"].startswith("KeyError")


def test_one_picture_of_a_seed_is_the_same_whatever_came_before(tmp_path, capsys):
    kept = tmp_path / "kept"
    assert fuzz_images.main(["--seed", "7", "--only", "1234", "--write", str(kept)]) == 0
    assert kept.read_bytes() == fuzz_images.picture(7, 1234)[1]


@pytest.mark.parametrize(
    "raised",
    [
        struct.error("s"), KeyError(1), TypeError("t"), zlib.error("z"), OverflowError(), RecursionError(),
        AssertionError(), RuntimeError(), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), ZeroDivisionError(),
        MemoryError(), UserWarning("a warning that -W error made an exception"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_exception_of_a_decoder_becomes_ours(monkeypatch, raised):
    def fails(*args, **options):
        raise raised

    monkeypatch.setattr(module.Image, "open", fails)
    with pytest.raises(AdaptPruneError, match="^'photo' (is damaged or cut off|needs more memory)") as caught:
        decode_image(PNG, "photo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_decoder_stays_interrupted(monkeypatch, raised):
    def stops(*args, **options):
        raise raised

    monkeypatch.setattr(module.Image, "open", stops)
    with pytest.raises(raised):
        decode_image(PNG, "photo")


def test_formats_that_start_programs_are_not_tried():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(AdaptPruneError, match="is not an image that can be read: use PNG, JPEG"):
        decode_image(postscript, "x")


def test_strangers_may_send_avif_where_pillow_reads_it(monkeypatch):
    assert "AVIF" in WEB_FORMATS
    if features.check("avif"):
        assert decode_image(encoded(FLAT, "AVIF"), "x", formats=WEB_FORMATS).size == (16, 16)
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)  # as in a Pillow built without it
    assert decode_image(PNG, "x", formats=WEB_FORMATS).size == (16, 16)
    with pytest.raises(AdaptPruneError, match="use PNG, JPEG, WEBP, GIF or BMP"):
        decode_image(b"\0\0\0\x1cftypavif\0\0\0\0avif", "x", formats=WEB_FORMATS)


def test_an_icon_is_as_large_as_the_picture_inside():
    inside = encoded(Image.new("L", (400, 400)))
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHLL", 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.raises(AdaptPruneError, match="400 x 400 pixels, more than the 1,000|damaged|not an image"):
        decode_image(head + inside, "x", max_pixels=1000)


def test_threads_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_image(PNG, "x") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# -- the picture that a server sends back -----------------------------------------------------------------------------


def test_the_overlay_of_a_server_goes_through_the_same_decoder(monkeypatch):
    def url(data: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(data).decode()

    assert client_module._picture(url(PNG)).size == (16, 16)
    bad = [
        url(encoded(FLAT, "JPEG")),
        url(PNG[:40]),
        url(b""),
        url(PNG)[:-3] + "!!!",
        "data:image/png;base64,A",
        "http://x/y.png",
    ]
    for text in bad:
        assert client_module._picture(text) is None
    monkeypatch.setattr(client_module, "MAX_OVERLAY", 10)
    assert client_module._picture(url(PNG)) is None


def test_no_other_place_opens_pictures():
    """Every byte that becomes a picture goes through `decode_image`."""
    package = Path(module.__file__).parent
    found = [
        str(path.relative_to(package)) for path in package.rglob("*.py") if "Image.open(" in path.read_text("utf-8")
    ]
    assert found == ["images.py"]
