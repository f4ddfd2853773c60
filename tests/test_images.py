"""Pictures that users name: every way in which one can be wrong ends in one line that says so."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune import images as module
from adaptprune.images import decode_image, open_image


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


PICTURE = encoded(Image.effect_noise((64, 48), 50).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(Image.new(mode, (5, 4)), form), "x").mode == "RGB"


@pytest.mark.parametrize(("mode", "top"), [("I;16", 65535), ("I", 65535), ("I", 255), ("F", 1.0), ("F", 255.0)])
def test_deep_pictures_are_scaled_not_clipped(mode, top):
    """A ramp stays a ramp: half of the way is middle grey."""
    ramp = np.linspace(0, top, 101)[None].repeat(4, axis=0)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    picture = decode_image(encoded(Image.fromarray(ramp.astype(kind)), "TIFF"), "x")
    assert [picture.getpixel((x, 1))[0] for x in (0, 50, 100)] == [0, pytest.approx(127.5, abs=1), 255]


def test_pictures_as_thin_as_a_thread_are_refused():
    with pytest.raises(AdaptPruneError, match="5000 x 1 pixels: no side may be more than 100 times the other"):
        decode_image(encoded(Image.new("L", (5000, 1))), "x")


def test_transparency_becomes_white():
    assert decode_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0))), "x").getpixel((0, 0)) == (255, 255, 255)


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    assert decode_image(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif), "x").size == (20, 30)


def test_files(tmp_path):
    path = tmp_path / "näme with spaces.png"
    path.write_bytes(PICTURE)
    assert open_image(path).size == open_image(str(path)).size == (64, 48)
    for bad, text in [
        (tmp_path / "none.png", "there is no file"),
        (tmp_path, "cannot read"),
        ("ftp://a/b.png", "give a plain path"),
        ("/dev/zero", "it is not a file"),
        ("a\0b.png", "cannot read"),
        ("~no-such-user-here/x.png", "cannot read|there is no file"),
        ("example:wod", "unknown example 'wod'. Did you mean 'wood'"),
    ]:
        with pytest.raises(AdaptPruneError, match=text):
            open_image(bad)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"hello, not an image", "is not an image that can be read"),
        (PICTURE[: len(PICTURE) // 2], "damaged or cut off"),
        (PICTURE[:60] + b"\0" * 40 + PICTURE[100:], "damaged or cut off|is not an image"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:300], "damaged or cut off|is not an image"),
    ],
)
def test_damaged_data(data, text):
    with pytest.raises(AdaptPruneError, match=f"'photo'.*({text})"):
        decode_image(data, "photo")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 15_000, 60_000])
def test_gigantic_pictures_are_refused_before_they_are_decoded(side):
    with pytest.raises(AdaptPruneError, match="100,000,000"):
        decode_image(bomb(side, side), "bomb")


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(PICTURE)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(AdaptPruneError, match="more than the 100 bytes"):
        open_image(path)


@pytest.fixture
def server():
    """A loopback server with a picture, a page, an endless answer and an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = {"/a.png": PICTURE, "/page": b"<html>", "/long": b"x" * 4096, "/empty": b""}.get(
                self.path.partition("?")[0]
            )
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_addresses(server, monkeypatch):
    assert open_image(f"{server}/a.png").size == (64, 48)
    for path, text in [("/none", "answered 404"), ("/page", "is not an image"), ("/empty", "is empty")]:
        with pytest.raises(AdaptPruneError, match=text):
            open_image(server + path)
    with pytest.raises(AdaptPruneError, match="cannot fetch 'http://127.0.0.1:9/a.png'"):
        open_image("http://127.0.0.1:9/a.png")
    for bad in ("http://", "http://[::1/x.png", "http://127.0.0.1:9/with space/ü.png", "http://127.0.0.1:port/"):
        with pytest.raises(AdaptPruneError, match="cannot fetch 'http://"):
            open_image(bad)
    assert open_image(f"{server}/a.png?ü=é x").size == (64, 48)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(AdaptPruneError, match="more than the 100 bytes"):
        open_image(f"{server}/long")
