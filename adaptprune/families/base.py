"""What a family tells about a model: its parts, and the places of its visual tokens. No hooks, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """The visual tokens of one sample, in the order of the sequence.

    Attributes
    ----------
    positions : Tensor, (N,), int64
        Places in the sequence handed to this forward.
    coords : Tensor, (N, 3), int64
        Grid, row, column. A grid is an image, a tile or a frame, numbered from 0 within the sample.
    images : Tensor, (N,), int64
        The image that each token belongs to, numbered from 0; an image may have several grids.
    """

    positions: Tensor
    coords: Tensor
    images: Tensor


class Family:
    """One visual layout. Subclasses set `model_types` and override `layout`; the rest has the usual defaults."""

    model_types: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    supports: ClassVar[dict[str, bool]] = {}

    def check(self, config: Any) -> None:
        """Raise AdaptPruneError if a model with this config cannot be pruned although its type is known."""

    def base(self, model: nn.Module) -> nn.Module:
        """The module whose forward sees `input_ids` next to the images."""
        inner = getattr(model, "model", model)
        assert isinstance(inner, nn.Module)
        return inner

    def decoder(self, model: nn.Module) -> nn.Module:
        """The language model; its `layers` are the decoder layers."""
        decoder = self.base(model).language_model
        assert isinstance(decoder, nn.Module)
        return decoder

    def layout(self, config: Any, inputs: Mapping[str, Any]) -> list[Layout] | None:
        """Where the visual tokens stand: one Layout per sample (empty ones for text), or None if no image is given.

        Parameters
        ----------
        config
            The model's config.
        inputs : mapping
            The keyword arguments of the base module's forward.
        """
        raise NotImplementedError(f"{type(self).__name__} does not override layout")


def raster(grids: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Coordinates of `grids` full grids one after another, each row by row: (grids * rows * columns, 3), int64."""
    axes = [torch.arange(size, device=device) for size in (grids, rows, columns)]
    return torch.cartesian_prod(*axes)
