"""Video-LLaVA: one square grid per image and per frame; a frame's class token goes in too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family, argument, squares


class VideoLlava(Family):
    """Class tokens of frames have no place on the grid and are always kept."""

    model_types: ClassVar[tuple[str, ...]] = ("video_llava",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Video-LLaVA: one grid per image and per frame; class tokens are always kept"
    supports: ClassVar[dict[str, bool]] = {**Family.supports, "video": True}

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        if modality == "video":
            return squares(features, extra=1, group=argument(inputs, "pixel_values_videos").shape[1])
        return squares(features, extra=int(base.config.vision_feature_select_strategy == "full"))
