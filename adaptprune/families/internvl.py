"""InternVL 3: an image is a run of square tiles, the last of them the whole image in small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from adaptprune.families.base import Family, squares


class InternVL(Family):
    """Every tile is a grid; tiles whose placeholders follow one another without a break are one image."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "InternVL 3: tiles and thumbnail; video as a sequence of images"

    def picture_per_grid(self, config: Any) -> bool:
        return True

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        return squares(features)

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        images = [0]
        for before, after in pairwise(places):
            images.append(images[-1] + int(after[0] != before[-1] + 1))
        return images
