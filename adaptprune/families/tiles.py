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


class MarkedFirst(Generic):
    """The first tile of a picture has a mark in front of it that no other tile of it has."""

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        marks = _marks(labels, places)
        images = [0]
        for mark in marks[1:]:
            images.append(images[-1] + int(mark == marks[0]))
        return images


class MarkedLast(Generic):
    """The last tile of a picture, which may be its only one, has a mark in front of it that no other tile of it has."""

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        marks = _marks(labels, places)
        images = [0]
        for mark in marks[:-1]:
            images.append(images[-1] + int(mark == marks[-1]))
        return images


def _marks(labels: Tensor, places: Sequence[Tensor]) -> list[int]:
    """The token in front of each tile; -1 for none."""
    return [int(labels[tile[0] - 1]) if tile[0] else -1 for tile in places]


class Idefics3(MarkedLast):
    """The picture in small comes last, also alone. The features of several tiles may come in one piece."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        return _whole_tiles(base.config, base.config.scale_factor, features)


class GraniteDocling(MarkedFirst):
    """A lone tile counts as the first one. All tiles of a prompt may be read finely, in four times as many tokens."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        scale = base.config.vision_config.scale_factor
        return _whole_tiles(base.config, scale if inputs.get("tile_fine_mask") is None else scale // 2, features)


def _whole_tiles(config: Any, scale: int, features: Any) -> list[Tensor]:
    """Cells of the square tiles of all prompts, from their number of tokens each."""
    tower = config.vision_config
    tokens = (tower.image_size // tower.patch_size) ** 2 // scale**2
    return squares(torch.empty(len(flat(features)) // tokens, tokens, 0))


class Latents(Generic):
    """A fixed number of latents per picture, which stand for no place in it; features may come by prompt."""

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        tokens = base.config.perceiver_config.resampler_n_latents
        self.note(NO_GRID)
        return [raster(1, 1, tokens)] * (len(flat(features)) // tokens)
