"""What picture files carry besides pixels, taken out before a decoder reads them: only the orientation is of use.

Decoders read EXIF, comments and profiles in full, and some of them fail on what cameras and editors write there; a few
bytes can make them take gigabytes or minutes. Knows nothing of Pillow.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from adaptprune.errors import AdaptPruneError

#: The orientations of EXIF's tag 0x0112; 1 is upright.
ORIENTATIONS = range(1, 9)
#: Parts (segments, chunks, blocks) of one file; a camera's picture has some tens.
MAX_PARTS = 100_000
#: Bytes that a file may spend on what is not pixels, where they have to be read to get past them.
MAX_ASIDE = 2**20

_ORIENTATION, _XMP = 0x0112, 0x02BC
_POINTERS = (0x8769, 0x8825, 0xA005, _XMP)  # Exif, GPS and interoperability tables, XMP
#: Whole numbers of one, two and four bytes, without a sign and with one: the same for 1 to 8.
_WHOLE = (1, 3, 4, 6, 8, 9)
_UNKNOWN = 0
#: Bytes per value of each of TIFF's types.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def separate(data: bytes) -> tuple[bytes, int | None]:
    """A file without what it carries besides pixels, and its orientation (1 to 8) if it names one.

    Files of other formats, and damaged ones, come back as they are: the decoder has the last word on them.

    Raises
    ------
    AdaptPruneError
        It carries far more besides pixels than any camera or editor writes; the message lacks the file's name.
    """
    for begins, split in _FORMATS:
        if begins.match(data):
            try:
                return split(data)
            except (struct.error, IndexError):  # cut off inside
                return data, None
    return data, None


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in an EXIF block, with or without its heading; None if there is none that can be read."""
    try:
        table = _Table(exif.removeprefix(b"Exif\0\0"))
        return next((table.orientation(*entry[1:]) for entry in table.entries() if entry[0] == _ORIENTATION), None)
    except struct.error:
        return None


def xmp_orientation(xmp: bytes) -> int | None:
    """The orientation in an XMP packet."""
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])["<]', xmp)
    return int(found[1]) if found else None


def _too_much() -> AdaptPruneError:
    return AdaptPruneError("carries too much besides pixels (comments, EXIF, profiles): save it without metadata.")


# -- TIFF, and the TIFF inside EXIF -----------------------------------------------------------------------------------


class _Table:
    """The first table of tags of a TIFF; struct.error if it is none."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        order = {b"II": "<", b"MM": ">"}.get(data[:2])
        if order is None:
            raise struct.error("no TIFF")
        self.order = order
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        self.entry, self.inline, start, number = (
            ("HHQ", 8, struct.unpack_from(order + "Q", data, 8)[0], "Q")
            if big
            else ("HHL", 4, struct.unpack_from(order + "L", data, 4)[0], "H")
        )
        self.count = struct.unpack_from(order + number, data, start)[0]
        self.start = start + struct.calcsize(order + number)
        self.head = struct.calcsize(order + self.entry)

    def entries(self) -> Iterator[tuple[int, int, int, int]]:
        """Tag, type, number of values, and where the value (or its address) stands."""
        for index in range(min(self.count, 2**16)):
            place = self.start + index * (self.head + self.inline)
            tag, kind, count = struct.unpack_from(self.order + self.entry, self.data, place)
            yield tag, kind, count, place + self.head

    def value(self, kind: int, count: int, place: int) -> tuple[int, int]:
        """Where a value begins and how many bytes it has."""
        size = _SIZES.get(kind, 0) * count
        if size > self.inline:
            (place,) = struct.unpack_from(self.order + ("Q" if self.inline == 8 else "L"), self.data, place)
        return place, size

    def orientation(self, kind: int, count: int, place: int) -> int | None:
        """The value of the orientation's entry; None for a text, a fraction or a number that means nothing."""
        if kind not in _WHOLE or count != 1:
            return None
        value = int.from_bytes(self.data[place : place + _SIZES[kind]], "little" if self.order == "<" else "big")
        return value if value in ORIENTATIONS else None


def _tiff(data: bytes) -> tuple[bytes, int | None]:
    table, plain = _Table(data), bytearray(data)
    found: int | None = None
    xmp: int | None = None
    claimed = 0
    for tag, kind, count, place in table.entries():
        start, size = table.value(kind, count, place)
        claimed += size
        if tag == _ORIENTATION:
            found = table.orientation(kind, count, place)
        elif tag == _XMP and size <= MAX_ASIDE:
            xmp = xmp_orientation(data[start : start + size])
        if tag == _ORIENTATION or tag in _POINTERS:  # decoders pass over types that they do not know
            struct.pack_into(table.order + "H", plain, place - table.head + 2, _UNKNOWN)
    if claimed > len(data) + MAX_ASIDE:  # values that lie in the same bytes over and over
        raise _too_much()
    return bytes(plain), found or xmp


# -- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> tuple[bytes, int | None]:
    parts, place = [data[:2]], 2
    exif: int | None = None
    xmp: int | None = None
    for _ in range(MAX_PARTS):
        place = data.find(b"\xff", place)
        if place < 0:
            return data, None
        while data[place + 1] == 0xFF:
            place += 1
        marker = data[place + 1]
        if marker == 0xDA:  # the pixels follow
            return b"".join([*parts, data[place:]]), exif or xmp
        if marker in (0x00, 0xC8) or 0xD0 <= marker <= 0xD9 or 0xF0 <= marker <= 0xFD:  # alone, without a length
            place += 2
            continue
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        body = data[place + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or exif_orientation(body)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or xmp_orientation(body)
        # JFIF and Adobe's segment say what the colours mean; the other applications' segments and comments do not
        if (not 0xE0 <= marker <= 0xEF and marker != 0xFE) or marker in (0xE0, 0xEE):
            parts.append(data[place:end])
        place = max(end, place + 4)
    raise _too_much()


# -- PNG --------------------------------------------------------------------------------------------------------------

_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")


def _png(data: bytes) -> tuple[bytes, int | None]:
    parts, place = [data[:8]], 8
    exif: int | None = None
    other: int | None = None
    for _ in range(MAX_PARTS):
        if data[place + 4 : place + 8] in (b"IEND", b"") or place + 8 > len(data):
            return b"".join([*parts, data[place:]]), exif or other
        length, kind = struct.unpack_from(">L4s", data, place)
        end = place + 12 + length
        body = data[place + 8 : end - 4]
        if kind == b"eXIf":
            exif = exif_orientation(body)
        elif kind in _PNG_TEXT and length <= MAX_ASIDE:
            other = other or _png_text(kind, body)
        if kind[:1].isupper() or kind == b"tRNS" or end > len(data):
            parts.append(data[place:end])
        place = end
    raise _too_much()


def _png_text(kind: bytes, body: bytes) -> int | None:
    """The orientation in a text chunk: ImageMagick's EXIF in hexadecimal digits, or XMP."""
    keyword, _, rest = body.partition(b"\0")
    if keyword == b"Raw profile type exif":
        text = _inflated(rest[1:]) if kind == b"zTXt" else rest
        try:
            return exif_orientation(bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii")))
        except ValueError:
            return None
    if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt":
        text = rest[2:].split(b"\0", 2)[-1]
        return xmp_orientation(_inflated(text) if rest[:1] == b"\1" else text)
    return None


def _inflated(data: bytes) -> bytes:
    """At most `MAX_ASIDE` bytes of what zlib packed."""
    try:
        return zlib.decompressobj().decompress(data, MAX_ASIDE)
    except zlib.error:
        return b""


# -- GIF --------------------------------------------------------------------------------------------------------------


def _gif(data: bytes) -> tuple[bytes, int | None]:
    flags = data[10]
    place = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    parts, aside = [data[:place]], 0
    while data[place] == 0x21:  # an extension
        start, place = place, place + 2
        while data[place]:
            place += data[place] + 1
            if place - start + aside > MAX_ASIDE:
                raise _too_much()
        place += 1
        aside += place - start
        if data[start + 1] == 0xF9:  # which colour is transparent
            parts.append(data[start:place])
    return b"".join([*parts, data[place:]]), None


# -- AVIF -------------------------------------------------------------------------------------------------------------


def _avif(data: bytes) -> tuple[bytes, int | None]:
    """Without EXIF and XMP, which have no say: the properties irot and imir turn it, and the decoder reports them."""
    return re.sub(rb"(infe(?:\x02.{3}..|\x03.{3}.{4})..)(?:Exif|mime)", rb"\1skip", data, flags=re.DOTALL), None


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], tuple[bytes, int | None]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff),
    (re.compile(rb".{4}ftyp(?:avi[fs]|m[is]f1)", re.DOTALL), _avif),
)
