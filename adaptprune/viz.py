"""Pictures of what was kept: the image as the model saw it, groups of kept patches outlined, all else dimmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from adaptprune.hooks.seams import processors
from adaptprune.report import SampleReport

DIMMED = 0.3  # how much of a dropped patch is left
SHADE = 56  # grey that it fades into: not black, so that a dark picture's dropped and kept areas differ
LINE = 3  # pixels of an outline
CELL = 28  # pixels per visual token in the picture
GAP = 8  # pixels between several images
HEAT = 0.65  # how much of a score's colour lies over the picture
#: From low to high: dark blue to yellow, of rising lightness, so that it can be read without seeing colours.
RAMP = ((13, 22, 75), (52, 61, 142), (100, 110, 130), (170, 150, 90), (253, 231, 55))


def overlay(
    images: Sequence[Image.Image], sample: SampleReport, seen: Sequence[Image.Image] | None = None
) -> Image.Image:
    """The grids of one prompt side by side: dropped patches dimmed, groups of kept ones that touch outlined.

    Parameters
    ----------
    images : sequence of PIL images
        Those of the prompt, in its order.
    sample : SampleReport
        What `prune` reported of it.
    seen : sequence of PIL images, optional
        One per grid, as the model saw them after resizing and cropping (see `pictures_seen`); otherwise a grid is
        drawn over the whole of its image.
    """
    kept: list[list[tuple[int, int]]] = [[] for _ in sample.grids]
    for grid, row, column in sample.cells:
        kept[grid].append((row, column))
    return side_by_side([_panel(*panel) for panel in zip(*_grids(images, sample, seen), kept, strict=True)])


def heat(
    images: Sequence[Image.Image], sample: SampleReport, seen: Sequence[Image.Image] | None = None
) -> Image.Image | None:
    """The grids of one prompt under a map of how the rule ranked their patches: the brighter, the higher.

    Colours go by rank, for scores may differ by orders of magnitude. Parameters as of `overlay`; None if the report has
    no scores.
    """
    ranked = [score for score in sample.scores if score[3] == score[3]]  # nan: no rank
    if not ranked:
        return None
    order = sorted(range(len(ranked)), key=lambda place: ranked[place][3])
    shades: list[dict[tuple[int, int], float]] = [{} for _ in sample.grids]
    for rank, place in enumerate(order):
        grid, row, column, _ = ranked[place]
        shades[grid][row, column] = rank / max(1, len(order) - 1)
    return side_by_side([_heat(*panel) for panel in zip(*_grids(images, sample, seen), shades, strict=True)])


def _grids(
    images: Sequence[Image.Image], sample: SampleReport, seen: Sequence[Image.Image] | None
) -> tuple[Sequence[Image.Image], list[tuple[int, int]]]:
    """Of each grid, the picture that is drawn on, and its rows and columns."""
    if seen is None or len(seen) != len(sample.grids):
        seen = [images[image] for image, _, _ in sample.grids]
    return seen, [(rows, columns) for _, rows, columns in sample.grids]


def pictures_seen(processor: Any, inputs: Mapping[str, Tensor], sample: SampleReport) -> list[Image.Image] | None:
    """The pictures in `pixel_values`, one per grid; None for models that do not lay them out so.

    Parameters
    ----------
    inputs : mapping
        Model inputs of a batch of one.
    sample : SampleReport
        What `prune` reported of it: a picture belongs to a grid of its shape.
    """
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim < 4 or pixels.shape[-3] != 3:
        return None
    height, width = pixels.shape[-2:]
    flat = pixels.reshape(-1, 3, height, width)
    if len(flat) != len(sample.grids) or any(rows * width != columns * height for _, rows, columns in sample.grids):
        return None
    means, deviations = processors.colour_means(processor), processors.colour_deviations(processor)
    return [_picture(picture, means, deviations) for picture in flat]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from left to right on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    return canvas


def _picture(pixels: Tensor, means: Sequence[float], deviations: Sequence[float]) -> Image.Image:
    """Undo the normalisation of one image, (3, H, W)."""
    mean = torch.tensor(means).view(3, 1, 1)
    deviation = torch.tensor(deviations).view(3, 1, 1)
    picture = (pixels.float().cpu() * deviation + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def _panel(picture: Image.Image, shape: tuple[int, int], kept: Sequence[tuple[int, int]]) -> Image.Image:
    rows, columns = shape
    bright = picture.convert("RGB").resize((columns * CELL, rows * CELL), Image.Resampling.LANCZOS)
    faded = Image.blend(Image.new("L", bright.size, SHADE), bright.convert("L"), DIMMED).convert("RGB")
    cells = Image.new("L", (columns, rows))
    for row, column in kept:
        cells.putpixel((column, row), 255)
    # a frame of nothing, so that a group at the picture's edge is outlined there as well
    mask = ImageOps.expand(cells.resize(bright.size, Image.Resampling.NEAREST), LINE)
    panel = Image.composite(bright, faded, ImageOps.crop(mask, LINE))
    # white within, black around it: one of them stands out from any picture
    around = ImageChops.subtract(_spread(mask, ImageChops.lighter), mask)
    within = ImageChops.subtract(mask, _spread(mask, ImageChops.darker))
    panel.paste("black", mask=ImageOps.crop(around, LINE))
    panel.paste("white", mask=ImageOps.crop(within, LINE))
    return panel


def _heat(picture: Image.Image, shape: tuple[int, int], shades: Mapping[tuple[int, int], float]) -> Image.Image:
    rows, columns = shape
    size = columns * CELL, rows * CELL
    grey = picture.convert("L").resize(size, Image.Resampling.LANCZOS).convert("RGB")
    cells = Image.new("RGB", (columns, rows), _shade(0.0))
    for (row, column), shade in shades.items():
        cells.putpixel((column, row), _shade(shade))
    return Image.blend(grey, cells.resize(size, Image.Resampling.NEAREST), HEAT)


def _shade(value: float) -> tuple[int, int, int]:
    """A colour of the ramp at a value from 0 to 1."""
    place = min(value, 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    first, second, part = RAMP[low], RAMP[low + 1], place - low
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _spread(mask: Image.Image, most: Callable[[Image.Image, Image.Image], Image.Image]) -> Image.Image:
    """Every pixel's extreme within `LINE` pixels; as cells are wider than that, the ends of the window say it."""
    for x, y in ((LINE, 0), (0, LINE)):
        mask = most(mask, most(ImageChops.offset(mask, x, y), ImageChops.offset(mask, -x, -y)))
    return mask
