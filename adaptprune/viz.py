"""Pictures of what was kept: the image as the model saw it, with dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from adaptprune.families import family_of
from adaptprune.report import SampleReport

DIMMED = 0.25  # brightness of a dropped patch
CELL = 28  # pixels per visual token in the picture
GAP = 8  # pixels between several images


def overlay(config: Any, processor: Any, inputs: Mapping[str, Tensor], sample: SampleReport) -> Image.Image:
    """The images of one prompt side by side, dropped patches dimmed and kept ones outlined.

    The pictures are made from `pixel_values`, so they show what the model saw after resizing and cropping.

    Parameters
    ----------
    config
        The model's config.
    inputs : mapping
        Model inputs of a batch of one, with `input_ids` and `pixel_values` (images, 3, H, W).
    sample : SampleReport
        What `prune` reported of it.
    """
    layouts = family_of(config).layout(config, inputs)
    assert layouts is not None, "an overlay needs an image"
    (layout,) = layouts
    kept = torch.isin(layout.positions.cpu(), torch.tensor(sample.kept, dtype=torch.int64))
    coords = layout.coords.cpu()
    panels = []
    for grid, pixels in enumerate(inputs["pixel_values"]):
        member = coords[:, 0] == grid
        panels.append(_panel(_picture(pixels, processor.image_processor), coords[member, 1:], kept[member]))
    return side_by_side(panels)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from left to right on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    return canvas


def _picture(pixels: Tensor, image_processor: Any) -> Image.Image:
    """Undo the normalisation of one image, (3, H, W)."""
    mean = torch.tensor(image_processor.image_mean).view(3, 1, 1)
    deviation = torch.tensor(image_processor.image_std).view(3, 1, 1)
    picture = (pixels.float().cpu() * deviation + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


def _panel(picture: Image.Image, coords: Tensor, kept: Tensor) -> Image.Image:
    rows, columns = (coords.max(dim=0).values + 1).tolist()
    bright = picture.resize((columns * CELL, rows * CELL), Image.Resampling.LANCZOS)
    panel = Image.blend(Image.new("RGB", bright.size), bright, DIMMED)
    draw = ImageDraw.Draw(panel)
    for row, column in coords[kept].tolist():
        box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
        panel.paste(bright.crop(box), box)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(255, 255, 255))
    return panel
