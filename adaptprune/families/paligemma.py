"""PaliGemma 1 and 2: one square grid per image, in front of a prompt that sees all of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family, squares


class PaliGemma(Family):
    """The prompt is a prefix without a causal mask."""

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "PaliGemma 1 and 2: prefix attention"
    causal: ClassVar[bool] = False

    def picture_per_grid(self, config: Any) -> bool:
        return True

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        return squares(features)
