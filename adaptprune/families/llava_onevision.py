"""LLaVA-OneVision: a lone image in tiles, several images whole, a video as pooled frames and one newline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptprune.families.base import argument, flat, placeless, raster
from adaptprune.families.generic import Generic
from adaptprune.families.llava_next import unpadded


class LlavaOnevision(Generic):
    """As LLaVA-NeXT, with large images interpolated to a bound; newline tokens are always kept."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        if modality == "video":
            videos, frames = argument(inputs, "pixel_values_videos").shape[:2]
            # the newline behind a video is among its features since 5.20
            side = math.isqrt(len(flat(features)) // videos // frames)
            return [torch.cat([raster(frames, side, side), placeless(1)])] * videos
        sizes, counts = argument(inputs, "image_sizes"), inputs.get("batch_num_images")
        tiled = [True] * len(sizes) if counts is None else [n == 1 for n in counts.tolist() for _ in range(n)]
        ratio = inputs.get("vision_aspect_ratio") or base.config.vision_aspect_ratio
        return unpadded(base, sizes, tiled, vision_aspect_ratio=ratio)
