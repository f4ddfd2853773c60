"""Gemma 3: one square grid of pooled tokens per image, all of which see one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family, squares


class Gemma3(Family):
    """Most layers have a sliding window; kept tokens leave it by their original positions."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Gemma 3: sliding-window layers, images see all of themselves"
    causal: ClassVar[bool] = False

    def picture_per_grid(self, config: Any) -> bool:
        return True

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        return squares(features)
