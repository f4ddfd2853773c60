"""Qwen2-VL, 2.5-VL and 3-VL: images of any size, videos as pairs of frames; 3-D rotary positions stay original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family, argument, raster


class QwenVL(Family):
    """Grids come from `image_grid_thw` and `video_grid_thw`: frames, rows and columns of patches before merging."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Qwen2-VL, Qwen2.5-VL: any resolution, M-RoPE, video"
    supports: ClassVar[dict[str, bool]] = {**Family.supports, "video": True}

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        grids = argument(inputs, f"{modality}_grid_thw")
        merge = base.config.vision_config.spatial_merge_size
        return [raster(int(t), int(h) // merge, int(w) // merge) for t, h, w in grids]


class Qwen3VL(QwenVL):
    """Features of early vision layers are added to all visual tokens after the first decoder layers (deepstack)."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Qwen3-VL: as Qwen2.5-VL; prunes after the layers that deepstack adds features to"
    supports: ClassVar[dict[str, bool]] = {**QwenVL.supports, "encoder": False}

    def smallest_layer(self, config: Any) -> int:
        return len(config.vision_config.deepstack_visual_indexes)
