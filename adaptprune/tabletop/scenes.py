"""What is on the table: deterministic scenes, addressed by split and index.

Contract: ``scene(split, index)`` is a pure function; the same arguments give the same scene on every machine, because
only ``random.Random.random`` is used, whose stream Python guarantees. Splits are disjoint by seed derivation: the seed
is a hash of (version, split, index), so no seed is shared. Nothing here draws pixels or asks questions.
"""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from adaptprune.tabletop.vocabulary import (
    BACKGROUNDS,
    CHARACTERS,
    COLOUR_NAMES,
    COLUMNS,
    FLAT,
    IMAGE_SIZE,
    ROWS,
    SHAPES,
    SIZES,
    SPLITS,
)

VERSION = 1


@dataclass(frozen=True)
class _Level:
    """How full a table is and how small the writing."""

    things: tuple[int, int]
    sizes: tuple[str, ...]
    character: tuple[int, int]  # font size in pixels
    clutter: tuple[int, int]
    grounds: tuple[str, ...] = BACKGROUNDS


# The hard split is never trained on: twice to three times as many things, smaller ones, and smaller text.
_STANDARD = _Level((4, 12), ("small", "small", "medium", "medium", "large"), (34, 42), (0, 16))
_HARD = _Level((16, 28), ("small", "small", "small", "medium"), (22, 28), (8, 32))
# The plain split is as empty as can be, for rules that suit crowded pictures only: nothing but what is asked about.
_PLAIN = _Level((1, 3), _STANDARD.sizes, _STANDARD.character, (0, 0), (FLAT,))
_LEVELS = {"hard": _HARD, "plain": _PLAIN}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Thing:
    """One coloured shape; ``x`` and ``y`` are its centre and ``radius`` that of its bounding circle, in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float  # radians, small: a square must not turn into a diamond
    tint: tuple[int, int, int]  # added to the colour's RGB, so that no colour is one exact value

    @property
    def cell(self) -> str:
        """Name of the 3 x 3 grid cell that holds the centre, such as ``"top left"``."""
        third = IMAGE_SIZE / 3
        row, column = min(2, int(self.y / third)), min(2, int(self.x / third))
        return f"{ROWS[row]} {COLUMNS[column]}"


@dataclass(frozen=True)
class Sign:
    """A plate with 2-4 characters, centred at (x, y); ``size`` is the font size in pixels."""

    text: str
    x: float
    y: float
    size: int
    dark: bool

    @property
    def advance(self) -> float:
        """Distance between the centres of neighbouring characters, in pixels."""
        return 0.78 * self.size

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the plate, in pixels."""
        half_width = 0.5 * self.advance * len(self.text) + 8
        half_height = 0.5 * self.size + 6
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height

    def character_x(self, position: int) -> float:
        """Horizontal centre of the character at ``position``, in pixels."""
        return self.x + (position - 0.5 * (len(self.text) - 1)) * self.advance


@dataclass(frozen=True)
class Clutter:
    """A speck (``length`` 0) or a short line that no question is about."""

    x: float
    y: float
    length: float
    width: float
    angle: float
    grey: int
    warmth: int


@dataclass(frozen=True)
class Background:
    """Table top: a material, its RGB base colour and the seed of its texture."""

    kind: str
    base: tuple[int, int, int]
    seed: int
    slant: float


@dataclass(frozen=True)
class Scene:
    """Everything needed to render one picture and to answer questions about it."""

    split: str
    index: int
    background: Background
    things: tuple[Thing, ...]
    sign: Sign | None
    clutter: tuple[Clutter, ...]

    def content_hash(self) -> str:
        """Hash of what the picture shows, without split and index (used to prove that splits share no scene)."""
        content = asdict(self)
        del content["split"], content["index"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def scene_seed(split: str, index: int) -> int:
    """Seed of one scene, a 64-bit hash of version, split and index."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"index must be 0 or more, got {index}")
    digest = hashlib.sha256(f"tabletop/{VERSION}/{split}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


class Draw:
    """Random choices built on ``random()`` alone, the only stream Python keeps stable between versions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high), rounded to 1/100 so that scenes serialise the same everywhere."""
        return round(low + (high - low) * self._random(), 2)

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def choice(self, options: Sequence[_T]) -> _T:
        """One of ``options``, all equally likely."""
        return options[int(self._random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def sample(self, options: Sequence[_T], count: int) -> list[_T]:
        """``count`` different entries of ``options`` in random order."""
        rest = list(options)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(count)]


def scene(split: str, index: int) -> Scene:
    """Make the scene at ``index`` of ``split``.

    Parameters
    ----------
    split : str
        ``"train"``, ``"validation"``, ``"test"``, ``"hard"`` or ``"plain"``.
    index : int
        Any number from 0 up; there is no last scene.

    Returns
    -------
    Scene
        4-12 things that do not overlap (16-28 in the hard split, 1-3 in the plain one), some clutter (none in the plain
        one, whose ground is of one colour) and, in four scenes of five, a sign.

    Raises
    ------
    ValueError
        If the split is unknown or the index negative.
    """
    draw = Draw(scene_seed(split, index))
    level = _LEVELS.get(split, _STANDARD)
    background = _background(draw, level.grounds)
    sign = _sign(draw, level) if draw.chance(0.8) else None
    things = _things(draw, level, sign)
    clutter = tuple(_clutter(draw) for _ in range(draw.integer(*level.clutter)))
    return Scene(split, index, background, things, sign, clutter)


def _background(draw: Draw, kinds: Sequence[str]) -> Background:
    kind = draw.choice(kinds)
    level = draw.integer(50, 95) if kind == "slate" else draw.integer(150, 225)
    warm = draw.integer(-12, 12) if kind != "wood" else draw.integer(22, 34)
    base = (level + warm, level, level - warm if kind != "wood" else level - 2 * warm)
    return Background(kind, base, draw.integer(0, 2**31 - 1), draw.uniform(-0.3, 0.3))


def _sign(draw: Draw, level: _Level) -> Sign:
    text = "".join(draw.choice(CHARACTERS) for _ in range(draw.integer(2, 4)))
    plate = Sign(text, 0.0, 0.0, draw.integer(*level.character), draw.chance(0.4))
    half_width, half_height = plate.box[2], plate.box[3]
    x = draw.uniform(half_width + 3, IMAGE_SIZE - half_width - 3)
    y = draw.uniform(half_height + 3, IMAGE_SIZE - half_height - 3)
    return Sign(text, x, y, plate.size, plate.dark)


def _things(draw: Draw, level: _Level, sign: Sign | None) -> tuple[Thing, ...]:
    # A narrow palette in half of the scenes makes repeats, without which counting has nothing to count.
    shapes = draw.sample(SHAPES, draw.integer(3, 5) if draw.chance(0.5) else len(SHAPES))
    colours = draw.sample(COLOUR_NAMES, draw.integer(3, 5) if draw.chance(0.5) else len(COLOUR_NAMES))
    wanted = draw.integer(*level.things)
    things: list[Thing] = []
    for attempt in range(400):
        if len(things) == wanted:
            break
        # After many misses only small things still fit.
        size = draw.choice(level.sizes) if attempt < 60 else "small"
        radius = draw.uniform(*SIZES[size])
        # One thing in eight may be cut by the edge, with its centre kept well inside.
        margin = 0.55 * radius if draw.chance(0.125) else radius + 2
        x, y = draw.uniform(margin, IMAGE_SIZE - margin), draw.uniform(margin, IMAGE_SIZE - margin)
        if not _is_free(x, y, radius, things, sign):
            continue
        tint = (draw.integer(-12, 12), draw.integer(-12, 12), draw.integer(-12, 12))
        angle = draw.uniform(-0.26, 0.26)
        things.append(Thing(draw.choice(shapes), draw.choice(colours), x, y, radius, angle, tint))
    return tuple(things)


def _is_free(x: float, y: float, radius: float, things: list[Thing], sign: Sign | None) -> bool:
    if any(math.hypot(x - other.x, y - other.y) < radius + other.radius + 4 for other in things):
        return False
    if sign is None:
        return True
    left, top, right, bottom = sign.box
    dx = max(left - x, 0.0, x - right)
    dy = max(top - y, 0.0, y - bottom)
    return math.hypot(dx, dy) > radius + 4


def _clutter(draw: Draw) -> Clutter:
    length = 0.0 if draw.chance(0.6) else draw.uniform(8, 24)
    x, y = draw.uniform(0, IMAGE_SIZE), draw.uniform(0, IMAGE_SIZE)
    angle = draw.uniform(0, math.pi)
    return Clutter(x, y, length, draw.uniform(1.2, 2.6), angle, draw.integer(30, 235), draw.integer(-20, 20))
