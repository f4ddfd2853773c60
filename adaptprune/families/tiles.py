"""Models that cut a picture into square tiles, each encoded by itself: which tiles are one picture.

It is read off the prompt. Tiles of one picture follow one another without a break, or with marks of rows and columns
between them; a mark in front of the whole picture in small, which comes first or last, tells where the next one begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.families.base import flat, raster, squares
from adaptprune.families.generic import NO_GRID, Generic


class Adjacent(Generic):
    """Every tile is a grid. Tiles of one picture have no token between them, and pictures have some."""

    #: How many tokens there may be between two tiles of one picture; between two pictures there are more.
    between: ClassVar[int] = 0

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        images = [0]
        for before, after in pairwise(places):
            images.append(images[-1] + int(after[0] - before[-1] - 1 > self.between))
        return images


class Separated(Adjacent):
    """One mark stands between two tiles of a picture."""

    between: ClassVar[int] = 1


class OverviewFirst(Generic):
    """The picture in small comes first, behind a mark that no other tile has in front of it."""

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        marks = [int(labels[tile[0] - 1]) if tile[0] else -1 for tile in places]
        images = [0]
        for mark in marks[1:]:
            images.append(images[-1] + int(mark == marks[0]))
        return images


class OverviewLast(Generic):
    """Before a tile stands a token for its row and column, before the picture in small one of its own."""

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        marks = [int(labels[tile[0] - 1]) if tile[0] else -1 for tile in places]
        images = [0]
        for mark in marks[:-1]:
            images.append(images[-1] + int(mark == marks[-1]))  # the last tile is a whole image: it shows the mark
        return images


class Idefics3(OverviewLast):
    """The features of several tiles may come in one piece."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        tower = base.config.vision_config
        scale = getattr(base.config, "scale_factor", None) or tower.scale_factor
        if inputs.get("tile_fine_mask") is not None:  # Granite Docling reads all tiles of a prompt finely then
            scale //= 2
        tokens = (tower.image_size // tower.patch_size) ** 2 // scale**2
        return squares(torch.empty(len(flat(features)) // tokens, tokens, 0))


class Docling(OverviewFirst, Idefics3):
    """A picture begins with the tile of row 1, column 1, and a small one has no other: none in small follows it."""


class Latents(Generic):
    """A fixed number of latents per picture, which stand for no place in it; features may come by prompt."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        tokens = base.config.perceiver_config.resampler_n_latents
        self.note(NO_GRID)
        return [raster(1, 1, tokens)] * (len(flat(features)) // tokens)
