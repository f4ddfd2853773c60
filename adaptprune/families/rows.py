"""Models whose pictures are grids with more around them: marks of rows, a view in small, crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptprune.families.base import argument, lined, placeless, raster, stacked
from adaptprune.families.generic import Generic, counted


class HunYuan(Generic):
    """A token before the picture, one after every row and one at the end, among the placeholders; always kept."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        merge = base.config.vision_config.spatial_merge_size
        grids = (lined(int(h) // merge, int(w) // merge) for _, h, w in argument(inputs, f"{modality}_grid_thw"))
        return [torch.cat([placeless(1), grid, placeless(1)]) for grid in grids]


class Molmo2(Generic):
    """Grid 0 is the whole picture in small, grid 1 the picture; the marks between them are text."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        if modality == "video":
            return [raster(int(t), int(h), int(w)) for t, h, w in argument(inputs, "video_grids")]
        grids = argument(inputs, "image_grids").tolist()
        return [stacked(raster(1, low, wide), raster(1, high, width)) for low, wide, high, width in grids]


class Step(Generic):
    """Square crops, row by row, each a grid, and the whole picture in small as the last one."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        crops, (counts, total) = inputs.get("num_local_patches"), counted(features)
        counts = counts or [total]
        local = [0] * len(counts) if crops is None else torch.as_tensor(crops).flatten().tolist()
        whole = min(counts) if 0 in local else None
        found = []
        for count, many in zip(counts, local, strict=True):
            sides = _sides(count, int(many), whole)
            if sides is None:
                self.note(f"{count} tokens of {many} crops and a picture are no squares: they count as one row")
                found.append(raster(1, 1, count))
            else:
                found.append(stacked(*(raster(1, side, side) for side in sides)))
        return found


def _sides(count: int, crops: int, whole: int | None) -> list[int] | None:
    """Sides of the crops and of the whole picture, whose tokens are `count` together; `whole`: those of the latter."""
    for side in range(1, int(count**0.5) + 1):
        rest, over = divmod(count - side * side, crops) if crops else (0, count - side * side)
        inner = round(rest**0.5)
        if over == 0 and inner * inner == rest and (whole is None or side * side == whole) and inner <= side:
            return [inner] * crops + [side]
    return None
