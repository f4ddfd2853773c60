"""Names and constants of Tabletop: shapes, colours, characters, grid cells and image geometry.

Contract: plain data, no randomness and no drawing. The order of every tuple is part of the format, because label
arrays index into them; append, never reorder.
"""

from typing import Final

IMAGE_SIZE: Final = 336  # pixels
PATCH_SIZE: Final = 14  # pixels
GRID: Final = IMAGE_SIZE // PATCH_SIZE  # 24 x 24 patches = 576 visual tokens

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
PLURALS: Final = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
    "diamond": "diamonds",
    "ring": "rings",
    "heart": "hearts",
}

COLOURS: Final = {
    "red": (214, 38, 40),
    "orange": (245, 138, 20),
    "yellow": (250, 218, 40),
    "green": (38, 158, 66),
    "cyan": (50, 205, 218),
    "blue": (38, 78, 212),
    "purple": (126, 48, 172),
    "pink": (248, 128, 186),
}
COLOUR_NAMES: Final = tuple(COLOURS)

# I and O are left out: in most typefaces they cannot be told from 1 and 0.
CHARACTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"

# radii in pixels; a patch is 14 pixels wide
SIZES: Final = {"small": (13.0, 16.0), "medium": (19.0, 24.0), "large": (28.0, 36.0)}
SMALL_RADIUS: Final = 17.0  # a thing below this radius carries the mark "small_object"
MANY_OBJECTS: Final = 9  # a scene with at least as many things carries the mark "many_objects"

ROWS: Final = ("top", "middle", "bottom")
COLUMNS: Final = ("left", "centre", "right")

BACKGROUNDS: Final = ("paper", "wood", "cloth", "tiles", "slate")
FLAT: Final = "flat"  # ground of one colour, of the plain split alone
SPLITS: Final = ("train", "validation", "test", "hard", "plain")
