"""LLaVA-NeXT-Video: images as LLaVA-NeXT has them; a video is a pooled square grid per frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptprune.families.base import argument, flat, raster
from adaptprune.families.llava_next import LlavaNext


class LlavaNextVideo(LlavaNext):
    """Adds `pixel_values_videos`, (videos, frames, 3, H, W)."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        if modality == "image":
            return super().cells(base, modality, inputs, features)
        videos, frames = argument(inputs, "pixel_values_videos").shape[:2]
        side = math.isqrt(len(flat(features)) // (videos * frames))
        return [raster(frames, side, side)] * videos
