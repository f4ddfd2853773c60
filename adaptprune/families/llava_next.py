"""LLaVA-NeXT: a small view of the image, then its tiles as one large grid with a newline token after every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from adaptprune.families.base import argument, lined, raster, stacked
from adaptprune.families.generic import Generic
from adaptprune.hooks.seams.parts import packed, tile_counts


class LlavaNext(Generic):
    """Grid 0 is the whole image in small; grid 1, the tiles put together and cut back to the image's shape."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        sizes = argument(inputs, "image_sizes")
        strategy = base.config.vision_feature_select_strategy
        return unpadded(base, sizes, [True] * len(sizes), vision_feature_select_strategy=strategy)


class Granite4(LlavaNext):
    """The same, of pictures whose tokens are fewer than their patches."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        sizes, rate = argument(inputs, "image_sizes"), Fraction(base.config.downsample_rate)
        strategy = base.config.vision_feature_select_strategy
        return unpadded(base, sizes, [True] * len(sizes), rate, vision_feature_select_strategy=strategy)


def unpadded(
    base: Any, image_sizes: Tensor, tiled: Sequence[bool], rate: Fraction = Fraction(1), **options: Any
) -> list[Tensor]:
    """Cells of images that the model itself packs: it is asked to pack markers in place of features.

    Parameters
    ----------
    image_sizes : Tensor, (images, 2)
        Height and width in pixels.
    tiled : sequence of bool
        Whether each image is cut into tiles.
    rate : Fraction
        Tokens per patch, along a side.
    **options
        Arguments of the model's `pack_image_features`.
    """
    tower = base.config.vision_config
    side = int(tower.image_size // tower.patch_size * rate)
    counts = [count if tiles else 1 for count, tiles in zip(tile_counts(base, image_sizes), tiled, strict=True)]
    markers = [torch.zeros(count, side * side, 1) for count in counts]
    lines = packed(base, markers, image_sizes, newline=torch.ones(1), **options)
    return [_cells(line[:, 0].bool(), side) for line in lines]


def _cells(newline: Tensor, side: int) -> Tensor:
    """From the places of the newline tokens: a square grid, then rows that each end with a newline."""
    overview, rest = raster(1, side, side), newline[side * side :]
    rows = int(rest.sum())
    columns = len(rest) // rows - 1 if rows else 0
    return stacked(overview, lined(rows, columns))
