"""Says once if a model's processor cuts off a good part of a picture: the model then answers about the rest alone.

How much is cut is found by trying, on pictures of the same shape whose brightness says where a pixel came from. So it
holds for any processor, whatever its settings are called and whether it tiles, pads or scales.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adaptprune.hooks.seams import processors

log = logging.getLogger(__name__)

#: The part of a picture's area that may go without a word.
ALLOWED = 0.1
#: Pixels of the shorter side of the pictures that are tried.
SHORT_SIDE = 64
#: Shapes are taken for the same if their logarithms are this near; a step changes what is cut by 2 %.
STEP = 0.02

_lock = threading.Lock()
_said: set[type] = set()
_known: dict[tuple[str, object], float] = {}  # by settings and shape


def note_crop(processor: Any, images: Sequence[Image.Image]) -> None:
    """Log a warning if the processor cuts more than `ALLOWED` off one of the pictures; once per process and class.

    Parameters
    ----------
    processor
        A model's processor, or its image processor; not used by another thread meanwhile.
    images : sequence of PIL image
        As they are given to it.
    """
    kind = type(processor)
    settings = processors.settings(processor) if kind not in _said and images else ""
    for image in images:
        if kind in _said:
            return
        resizes = processors.resizes(processor)
        shape = round(math.log(image.width / image.height) / STEP) if resizes else image.size
        if _known.get((settings, shape), 1.0) <= ALLOWED:
            continue
        found = sides_cut(processor, _like(image.size) if resizes else image.size)
        lost = 0.0 if found is None else 1 - (1 - found[0] - found[1]) * (1 - found[2] - found[3])
        with _lock:
            _known[settings, shape] = lost
            if lost <= ALLOWED or kind in _said:
                continue
            _said.add(kind)
        assert found is not None
        log.warning(_message(kind.__name__, image.size, lost, found))


def sides_cut(processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """What a processor cuts off a picture of (width, height): parts of its width left and right, of its height above
    and below. None if that cannot be told.
    """
    across = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    try:
        black, white, right, below = (
            _pixels(processor, picture)
            for picture in (Image.new("L", size, 0), Image.new("L", size, 255), across, down)
        )
        span = white - black
        seen = span.abs() > 1e-3  # what was padded is the same in both
        places = [((each - black)[seen] / span[seen]).clamp(0, 1) for each in (right, below)]
    except Exception:  # a processor that wants something else than a picture, or makes no pixels of it
        log.debug("what %s cuts off cannot be told", type(processor).__name__, exc_info=True)
        return None
    if not bool(seen.any()):
        return None
    return (*_beyond(places[0]), *_beyond(places[1]))


def _beyond(places: Tensor) -> tuple[float, float]:
    """What lies before the first and after the last of these places, which are the middles of pixels."""
    low, high = float(places.min()), float(places.max())
    steps = len(torch.unique((places * 255).round())) - 1
    half = (high - low) / max(steps, 1) / 2
    return max(0.0, low - half), max(0.0, 1 - high - half)


def _pixels(processor: Any, picture: Image.Image) -> Tensor:
    made = processors.pixels(processor, picture.convert("RGB"))
    return torch.cat([each.detach().float().flatten() for each in made])


def _like(size: tuple[int, int]) -> tuple[int, int]:
    """A small size of the same shape."""
    scale = SHORT_SIDE / min(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _message(name: str, size: tuple[int, int], lost: float, cut: tuple[float, float, float, float]) -> str:
    sides = zip(("left", "right", "top", "bottom"), cut, strict=True)
    where = ", ".join(f"{part:.0%} at the {side}" for side, part in sides if part >= 0.02)
    return (
        f"{name} cuts off {lost:.0%} of a picture of {size[0]} x {size[1]} pixels ({where}), which the model does not "
        "see. Pad pictures to a square, or show the parts as pictures of their own. This is said once."
    )
