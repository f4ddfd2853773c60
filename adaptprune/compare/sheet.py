"""A comparison as one picture: a column for every rule, with what it kept, how it ranked, what the model answered."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from adaptprune.compare import Compared
from adaptprune.viz import side_by_side

WIDE = 320  # pixels of a column
GAP = 16
INK, PALE, RED = (24, 24, 27), (110, 110, 118), (180, 35, 24)
TEXT, SMALL = 16, 13  # pixels of a letter


def sheet(rows: Sequence[Compared], prompt: str, images: Sequence[Image.Image]) -> Image.Image:
    """The contact sheet: above what was kept (of the unpruned model the pictures themselves), below the maps of scores.

    Parameters
    ----------
    rows : sequence of Compared
        As `compare` filled them.
    images : sequence of PIL images
        Those that were asked about.
    """
    columns = [_column(row, images) for row in rows]
    heights = [max(column[part].height for column in columns) for part in range(3)]
    title = _words(prompt, (WIDE + GAP) * len(columns) - GAP, TEXT + 2, INK)
    width = (WIDE + GAP) * len(columns) + GAP
    canvas = Image.new("RGB", (width, title.height + sum(heights) + GAP * 5), "white")
    canvas.paste(title, (GAP, GAP))
    for number, column in enumerate(columns):
        top = title.height + 2 * GAP
        for part, height in zip(column, heights, strict=True):
            canvas.paste(part, (GAP + number * (WIDE + GAP), top))
            top += height + GAP
    return canvas


def _column(row: Compared, images: Sequence[Image.Image]) -> tuple[Image.Image, Image.Image, Image.Image]:
    """What was kept, the map of scores, and the words below."""
    overlay = row.answer.overlay if row.answer is not None else None
    heat = row.answer.heat if row.answer is not None else None
    shown = overlay if overlay is not None else _beside(images)
    nothing = Image.new("RGB", (WIDE, 1), "white")
    return _scaled(shown), nothing if heat is None else _scaled(heat), _caption(row)


def _caption(row: Compared) -> Image.Image:
    lines = [_words(row.title, WIDE, TEXT, INK)]
    if row.error is not None or row.answer is None:
        lines.append(_words(row.error or "no answer", WIDE, SMALL, RED))
    else:
        lines.append(_words(row.answer.text or "(empty)", WIDE, TEXT, INK))
        lines.append(_words(cost(row), WIDE, SMALL, PALE))
    canvas = Image.new("RGB", (WIDE, sum(line.height + 4 for line in lines)), "white")
    top = 0
    for line in lines:
        canvas.paste(line, (0, top))
        top += line.height + 4
    return canvas


def cost(row: Compared) -> str:
    """Tokens and times of a row, for people."""
    kept = f"{row.kept[0]} of {row.kept[1]} visual tokens" if row.kept else "all visual tokens"
    if row.medians is None:
        return kept
    first, total = row.medians
    return f"{kept}; first token {first:.0f} ms, answer {total:.0f} ms"


def _words(text: str, width: int, size: int, ink: tuple[int, int, int]) -> Image.Image:
    """Text, broken into lines of at most `width` pixels."""
    font = ImageFont.load_default(size)
    letters = max(8, int(width / (0.55 * size)))
    lines = [line for part in (text.splitlines() or [""]) for line in textwrap.wrap(part, letters) or [""]][:12]
    step = round(size * 1.35)
    canvas = Image.new("RGB", (width, step * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((0, number * step), line, fill=ink, font=font)
    return canvas


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    if not images:
        return Image.new("RGB", (WIDE, 1), "white")
    height = max(image.height for image in images)
    sizes = [(max(1, image.width * height // image.height), height) for image in images]
    return side_by_side([image.convert("RGB").resize(size) for image, size in zip(images, sizes, strict=True)])


def _scaled(picture: Image.Image) -> Image.Image:
    height = max(1, min(3 * WIDE, picture.height * WIDE // picture.width))
    return picture.convert("RGB").resize((WIDE, height), Image.Resampling.LANCZOS)
