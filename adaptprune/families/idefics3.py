"""Idefics3 and SmolVLM: an image is cut into square tiles with text between them, the last one the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.families.base import Family, squares


class Idefics3(Family):
    """Every tile is a grid. Before it stands a token for its row and column, before the last one a token of its own."""

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    since: ClassVar[str | None] = "5.16.1"
    summary: ClassVar[str] = "Idefics3, SmolVLM: tiles and the whole image; video as a sequence of images"

    def picture_per_grid(self, config: Any) -> bool:
        return True

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        tower = base.config.vision_config
        tokens = (tower.image_size // tower.patch_size) ** 2 // base.config.scale_factor**2
        tiles = sum(len(part) for part in features) // tokens
        return squares(torch.empty(tiles, tokens, 0))

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        marks = [int(labels[tile[0] - 1]) if tile[0] else -1 for tile in places]
        images = [0]
        for mark in marks[:-1]:
            images.append(images[-1] + int(mark == marks[-1]))  # the last tile is a whole image: it shows the mark
        return images
