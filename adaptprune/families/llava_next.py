"""LLaVA-NeXT: a small view of the image, then its tiles as one large grid with a newline token after every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.families.base import Family, argument, placeless, raster
from adaptprune.hooks.seams.parts import packed, tile_counts


class LlavaNext(Family):
    """Grid 0 is the whole image in small; grid 1, the tiles put together and cut back to the image's shape."""

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "LLaVA-NeXT (1.6): a small view and unpadded tiles; newline tokens are always kept"

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        sizes = argument(inputs, "image_sizes")
        strategy = base.config.vision_feature_select_strategy
        return unpadded(base, sizes, [True] * len(sizes), vision_feature_select_strategy=strategy)


def unpadded(base: Any, image_sizes: Tensor, tiled: Sequence[bool], **options: Any) -> list[Tensor]:
    """Cells of images that the model itself packs: it is asked to pack markers in place of features.

    Parameters
    ----------
    image_sizes : Tensor, (images, 2)
        Height and width in pixels.
    tiled : sequence of bool
        Whether each image is cut into tiles.
    **options
        Arguments of the model's `pack_image_features`.
    """
    tower = base.config.vision_config
    side = tower.image_size // tower.patch_size
    counts = [count if tiles else 1 for count, tiles in zip(tile_counts(base, image_sizes), tiled, strict=True)]
    markers = [torch.zeros(count, side * side, 1) for count in counts]
    lines = packed(base, markers, image_sizes, newline=torch.ones(1), **options)
    return [_cells(line[:, 0].bool(), side) for line in lines]


def _cells(newline: Tensor, side: int) -> Tensor:
    """From the places of the newline tokens: a square grid, then rows that each end with a newline."""
    overview, rest = raster(1, side, side), newline[side * side :]
    rows = int(rest.sum())
    columns = len(rest) // rows - 1 if rows else 0
    large = torch.cat([raster(1, rows, columns + 1).view(rows, columns + 1, 3)[:, :columns] + torch.tensor([1, 0, 0]),
                       placeless(rows)[:, None]], dim=1)  # fmt: skip
    return torch.cat([overview, large.view(-1, 3)])
