"""What every patch shows: ground truth on the 24 x 24 grid, for training a vision tower and for judging kept tokens.

Contract: ``patch_labels(scene)`` is pure and fast (about 1 ms). A patch belongs to the thing or character that covers
most of it; patches that are barely touched are marked IGNORE rather than guessed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adaptprune.tabletop.render import polygon
from adaptprune.tabletop.scenes import Scene
from adaptprune.tabletop.vocabulary import CHARACTERS, COLOUR_NAMES, GRID, IMAGE_SIZE, PATCH_SIZE, SHAPES

IGNORE = -100
_TOUCHED, _OWNED = 0.03, 0.12  # fractions of a patch: below the first it is background, above the second it is owned

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class PatchLabels:
    """Labels of the 576 patches in row-major order.

    ``thing`` is the index of the covering thing or -1; ``shape`` indexes SHAPES, then background (8) and sign (9);
    ``colour`` indexes COLOUR_NAMES, ``character`` CHARACTERS and ``position`` the place in the sign's text, all IGNORE
    where there is none; ``offset`` is (576, 2), from the patch centre to the thing's centre, and ``radius`` (576,) the
    radius of the thing, both in patches and 0 where there is no thing.
    """

    thing: Labels
    shape: Labels
    colour: Labels
    character: Labels
    position: Labels
    offset: NDArray[np.float32]
    radius: NDArray[np.float32]


def patch_labels(scene: Scene) -> PatchLabels:
    """Label all patches of a scene; see `PatchLabels` for the meaning of the fields."""
    things = len(scene.things)
    letters = 0 if scene.sign is None else len(scene.sign.text)
    share = _coverage(scene, things + 1 + letters)  # (576, owners): things, the plate, then its characters
    owner = share.argmax(axis=1)
    covered = share.max(axis=1)
    is_thing = (owner < things) & (covered >= _OWNED)
    is_sign = (owner >= things) & (covered >= _OWNED)

    shapes = np.array([SHAPES.index(thing.shape) for thing in scene.things])
    colours = np.array([COLOUR_NAMES.index(thing.colour) for thing in scene.things])
    centres = np.array([(thing.x, thing.y) for thing in scene.things], dtype=np.float32)
    radii = np.array([thing.radius for thing in scene.things], dtype=np.float32)
    which = np.where(is_thing, owner, 0)

    shape = np.where(covered < _TOUCHED, len(SHAPES), IGNORE)
    shape = np.where(is_sign, len(SHAPES) + 1, np.where(is_thing, shapes[which], shape))
    offset = np.where(is_thing[:, None], centres[which] / PATCH_SIZE - _patch_centres(), 0.0)

    character, position = np.full(GRID * GRID, IGNORE), np.full(GRID * GRID, IGNORE)
    if scene.sign is not None:
        text = np.array([CHARACTERS.index(letter) for letter in scene.sign.text])
        place = owner - things - 1
        lettered = is_sign & (place >= 0)
        character[lettered], position[lettered] = text[place[lettered]], place[lettered]
    return PatchLabels(
        thing=np.where(is_thing, owner, -1),
        shape=shape,
        colour=np.where(is_thing, colours[which], IGNORE),
        character=character,
        position=position,
        offset=offset.astype(np.float32),
        radius=np.where(is_thing, radii[which] / PATCH_SIZE, 0).astype(np.float32),
    )


def _patch_centres() -> NDArray[np.float32]:
    """Centres of all patches as (x, y), in units of patches."""
    axis = np.arange(GRID, dtype=np.float32) + 0.5
    return np.stack([np.tile(axis, GRID), np.repeat(axis, GRID)], axis=1)


def _coverage(scene: Scene, owners: int) -> NDArray[np.float32]:
    """Fraction of every patch that each owner covers, (576, owners)."""
    canvas = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), owners)
    draw = ImageDraw.Draw(canvas)
    for index, thing in enumerate(scene.things):
        points = polygon(thing) + np.array([thing.x, thing.y])
        draw.polygon(points.ravel().tolist(), fill=index)
    if scene.sign is not None:
        plate = len(scene.things)
        draw.rectangle(scene.sign.box, fill=plate)
        half_width, half_height = 0.5 * scene.sign.advance - 2, 0.40 * scene.sign.size
        for place in range(len(scene.sign.text)):
            x, y = scene.sign.character_x(place), scene.sign.y
            draw.rectangle((x - half_width, y - half_height, x + half_width, y + half_height), fill=plate + 1 + place)
    pixels = np.asarray(canvas).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).swapaxes(1, 2).reshape(GRID * GRID, -1)
    flat = pixels.astype(np.int64) + (owners + 1) * np.arange(GRID * GRID)[:, None]
    counts = np.bincount(flat.ravel(), minlength=GRID * GRID * (owners + 1)).reshape(GRID * GRID, owners + 1)
    return (counts[:, :owners] / PATCH_SIZE**2).astype(np.float32)
