"""From scene to picture: antialiased drawing with Pillow, about 5 ms a scene.

Contract: ``render(scene)`` depends on nothing but the scene and returns an RGB image of IMAGE_SIZE squared. Things
are drawn four times larger and averaged down, tile by tile; the whole picture is never held at the larger size.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from adaptprune.tabletop.scenes import Background, Clutter, Scene, Sign, Thing
from adaptprune.tabletop.vocabulary import COLOURS, FLAT, IMAGE_SIZE

_OVERSAMPLING = 4
_SHADOW = 70  # opacity of a shadow, of 255

Points = NDArray[np.float64]


def _regular(count: int, turn: float = 0.0) -> Points:
    angles = np.arange(count) * 2 * math.pi / count + turn
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _star() -> Points:
    points = _regular(10)
    points[1::2] *= 0.45
    return points


def _cross(arm: float = 0.32) -> Points:
    corner = [(arm, -0.98), (arm, -arm), (0.98, -arm)]
    points = []
    for turn in range(4):
        cosine, sine = math.cos(turn * math.pi / 2), math.sin(turn * math.pi / 2)
        points += [(cosine * x - sine * y, sine * x + cosine * y) for x, y in corner]
    return np.array(points)


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 16.5


@lru_cache(maxsize=1)
def outlines() -> dict[str, Points]:
    """Unit polygons of all shapes, (n, 2) with y pointing down; none reaches beyond radius 1."""
    return {
        "circle": _regular(48),
        "ring": _regular(48),
        "square": _regular(4, math.pi / 4),
        "triangle": _regular(3),
        "star": _star(),
        "cross": _cross(),
        "diamond": _regular(4) * np.array([0.66, 1.0]),
        "heart": _heart(),
    }


def polygon(thing: Thing) -> Points:
    """Outline of a thing relative to its centre, (n, 2) in pixels."""
    cosine, sine = math.cos(thing.angle), math.sin(thing.angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    points: Points = thing.radius * outlines()[thing.shape] @ rotation
    return points


def render(scene: Scene) -> Image.Image:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene
        From ``adaptprune.tabletop.scene``.

    Returns
    -------
    PIL.Image.Image
        RGB, 336 x 336 pixels.
    """
    image = _table(scene.background)
    for piece in scene.clutter:
        _draw_clutter(image, piece)
    for thing in scene.things:
        _draw_thing(image, thing)
    if scene.sign is not None:
        _draw_sign(image, scene.sign)
    return image


def _table(background: Background) -> Image.Image:
    if background.kind == FLAT:
        return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background.base)
    # RandomState, not Generator: its stream is frozen, so a texture is the same under every version of numpy.
    noise = np.random.RandomState(background.seed)
    size = IMAGE_SIZE
    blotches = Image.fromarray(noise.randint(0, 256, (7, 7), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    tone = (np.asarray(blotches, dtype=np.float32) - 128) * 0.07
    across = np.arange(size, dtype=np.float32)
    if background.kind == "wood":
        # Stretched noise gives the grain, a slow ramp per board the planks.
        grain = Image.fromarray(noise.randint(0, 256, (84, 3), dtype=np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        tone += (np.asarray(grain, dtype=np.float32) - 128) * 0.09
        tone -= 14 * ((across % 84) < 1.5).astype(np.float32)[:, None]
    elif background.kind == "tiles":
        line = ((across % 56) < 2).astype(np.float32)
        tone -= 13 * np.maximum(line[:, None], line[None, :])
    elif background.kind == "cloth":
        weave = 4 * np.sin(across * 1.3)
        tone += weave[:, None] + weave[None, :]
    elif background.kind == "paper":
        tone += 22 * background.slant * (across / size - 0.5)[:, None] * 2
    else:
        tone += noise.randint(-5, 6, (size, size)).astype(np.float32)
    # One grey picture, coloured by a lookup table per channel: three times cheaper than colouring the array.
    grey = Image.fromarray(np.clip(tone + 128.5, 0, 255).astype(np.uint8))
    tables = [[max(0, min(255, base + value - 128)) for value in range(256)] for base in background.base]
    return Image.merge("RGB", [grey.point(table) for table in tables])


def _paste_shadow(image: Image.Image, corner: tuple[int, int], mask: Image.Image) -> None:
    image.paste((0, 0, 0), corner, ImageChops.darker(mask, Image.new("L", mask.size, _SHADOW)))


def _paste_polygons(
    image: Image.Image,
    centre: tuple[float, float],
    reach: float,
    layers: list[tuple[Points, tuple[int, int, int]]],
    hole: Points | None = None,
    shadow: bool = False,
) -> None:
    """Paste filled polygons (relative to ``centre``, outermost first) with antialiased edges."""
    left, top = math.floor(centre[0] - reach) - 1, math.floor(centre[1] - reach) - 1
    side = 2 * math.ceil(reach) + 4
    offset = np.array([centre[0] - left, centre[1] - top])
    scale = _OVERSAMPLING
    mask = Image.new("L", (side * scale, side * scale))
    tile = Image.new("RGB", (side * scale, side * scale), layers[0][1])
    ImageDraw.Draw(mask).polygon(((layers[0][0] + offset) * scale).ravel().tolist(), fill=255)
    for points, colour in layers[1:]:
        ImageDraw.Draw(tile).polygon(((points + offset) * scale).ravel().tolist(), fill=colour)
    if hole is not None:
        # the rim around the hole is as dark as the outer one
        ImageDraw.Draw(tile).polygon(((hole * 1.14 + offset) * scale).ravel().tolist(), fill=layers[0][1])
        ImageDraw.Draw(mask).polygon(((hole + offset) * scale).ravel().tolist(), fill=0)
    mask = mask.reduce(scale)
    if shadow:
        _paste_shadow(image, (left + 2, top + 3), mask)
    image.paste(tile.reduce(scale), (left, top), mask)


def _draw_thing(image: Image.Image, thing: Thing) -> None:
    points = polygon(thing)
    base = COLOURS[thing.colour]
    fill = tuple(min(255, max(0, value + shift)) for value, shift in zip(base, thing.tint, strict=True))
    rim = tuple(int(0.62 * value) for value in fill)
    # A rim of about a pixel and a half, whatever the size.
    inner = points * (1 - 1.7 / thing.radius)
    hole = points * 0.52 if thing.shape == "ring" else None
    layers = [(points, (rim[0], rim[1], rim[2])), (inner, (fill[0], fill[1], fill[2]))]
    _paste_polygons(image, (thing.x, thing.y), thing.radius, layers, hole, shadow=True)


def _draw_clutter(image: Image.Image, piece: Clutter) -> None:
    colour = (piece.grey + piece.warmth, piece.grey, piece.grey - piece.warmth)
    colour = (max(0, min(255, colour[0])), colour[1], max(0, min(255, colour[2])))
    if piece.length == 0:
        points = _regular(8) * piece.width
    else:
        along = np.array([math.cos(piece.angle), math.sin(piece.angle)]) * piece.length / 2
        side = np.array([-along[1], along[0]]) / piece.length * piece.width
        points = np.array([along + side, along - side, -along - side, -along + side])
    _paste_polygons(image, (piece.x, piece.y), max(piece.length / 2, piece.width) + 1, [(points, colour)])


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow carries this typeface inside, so pictures do not depend on the fonts of the machine.
    return ImageFont.load_default(size)


def _draw_sign(image: Image.Image, sign: Sign) -> None:
    plate, ink = ((44, 48, 58), (250, 250, 245)) if sign.dark else ((250, 247, 235), (28, 30, 38))
    left, top, right, bottom = (round(edge) for edge in sign.box)
    width, height, scale = right - left, bottom - top, _OVERSAMPLING
    mask = Image.new("L", (width * scale, height * scale))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * scale - 1, height * scale - 1), 6 * scale, fill=255)
    mask = mask.reduce(scale)
    _paste_shadow(image, (left + 2, top + 3), mask)
    image.paste(plate, (left, top), mask)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((left + 2, top + 2, right - 3, bottom - 3), 4, outline=ink)
    for position, character in enumerate(sign.text):
        where = (sign.character_x(position), sign.y)
        draw.text(where, character, fill=ink, font=_font(sign.size), anchor="mm", stroke_width=0.6)
