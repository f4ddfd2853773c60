"""Video-LLaVA: one square grid per image and per frame; a frame's class token goes in too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adaptprune.families.base import argument, squares
from adaptprune.families.generic import Generic


class VideoLlava(Generic):
    """Class tokens of frames have no place on the grid and are always kept."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        if modality == "video":
            return squares(features, extra=1, group=argument(inputs, "pixel_values_videos").shape[1])
        return squares(features, extra=int(base.config.vision_feature_select_strategy == "full"))
