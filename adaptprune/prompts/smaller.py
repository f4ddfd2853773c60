"""The same conversation with smaller pictures: the baseline that every selection of tokens has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from adaptprune.hooks.seams import processors
from adaptprune.methods.pool import cells
from adaptprune.prompts.turns import Turn
from adaptprune.pruner import budget


@dataclass(frozen=True)
class Smaller:
    """A conversation, and how it has to be read.

    Attributes
    ----------
    processing, encoding : dict
        Options of the processor, and of the model's encode calls.
    """

    turns: Sequence[Turn]
    processing: dict[str, Any] = field(default_factory=dict)
    encoding: dict[str, Any] = field(default_factory=dict)


def smaller(turns: Sequence[Turn], keep_ratio: float, processor: Any, config: Any) -> Smaller:
    """Pictures of about `keep_ratio` times the tokens.

    A tower that sees all pictures at one size is asked for another, of as near as possible as many patches. Other
    models make tokens of what they are given, so that the pictures themselves are made smaller.
    """
    if not processors.crops(processor):
        return Smaller([_scaled(turn, math.sqrt(keep_ratio)) for turn in turns])
    tower = config.vision_config
    side = tower.image_size // tower.patch_size
    height, width = (tower.patch_size * count for count in cells(side, side, budget(keep_ratio, side**2)))
    pixels = {"height": height, "width": width}
    return Smaller(turns, {"size": pixels, "crop_size": pixels}, {"interpolate_pos_encoding": True})


def _scaled(turn: Turn, scale: float) -> Turn:
    return Turn(turn.role, [part if isinstance(part, str) else _resized(part, scale) for part in turn.parts])


def _resized(image: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(scale * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
