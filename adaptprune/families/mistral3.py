"""Mistral 3 (Pixtral's tower): images of any size; row breaks are text tokens of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family
from adaptprune.families.llava import whole_patches


class Mistral3(Family):
    """One grid of merged patches per image; the row breaks between them are no visual tokens and always stay."""

    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Mistral Small 3.x (Pixtral tower): any resolution"

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        config = base.config
        return whole_patches(inputs, config.vision_config.patch_size * config.spatial_merge_size)
