"""What a family tells about a model: where its visual tokens lie on their grids. No hooks, no rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.errors import AdaptPruneError

#: Attribute of a unit's cells that holds what was seen while it was encoded (`adaptprune.hooks.tower`).
SEEN = "_adaptprune_seen"


@dataclass(frozen=True)
class Layout:
    """The visual tokens of one sample that can be pruned, in the order of the sequence.

    Attributes
    ----------
    positions : Tensor, (N,), int64
        Places in the sequence handed to this forward.
    coords : Tensor, (N, 3), int64
        Grid, row, column. A grid is an image, a tile or a frame, numbered from 0 within the sample.
    images : Tensor, (N,), int64
        The image (or video) that each token belongs to, numbered from 0; an image may have several grids.
    source : Tensor, (N, 2), int64
        The unit that each token was encoded with (see `Family.cells`), and its number among the tokens of that.
    seen : sequence
        By unit, what was noted of it while it was encoded; None for nothing. Of joined layouts neither is known.
    """

    positions: Tensor
    coords: Tensor
    images: Tensor
    source: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))
    seen: Sequence[Any] = ()

    @classmethod
    def empty(cls, device: torch.device) -> Layout:
        """No visual tokens."""
        none = torch.empty(0, dtype=torch.int64, device=device)
        return cls(none, none.view(0, 3), none)


class Family:
    """One visual layout.

    A subclass overrides `cells` or `group` and declares limits; where the parts of a model are is found by its
    structure (`adaptprune.hooks.seams.parts`). `adaptprune.families.generic.Generic` finds cells, too.
    """

    #: What models these are, if another package brings them (those that come with this one are in `TYPES`).
    summary: ClassVar[str] = ""
    #: Whether a token sees nothing that comes after it (not so where images see all of themselves).
    causal: bool = True

    def __init__(self) -> None:
        #: What a reader of a report should know of the geometry, each once.
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Have something said in the report."""
        if text not in self.notes:
            self.notes.append(text)

    def check(self, config: Any) -> None:
        """Raise AdaptPruneError if a model with this config cannot be pruned although its type is known."""

    def smallest_layer(self, config: Any) -> int:
        """The first decoder layer before which tokens can leave."""
        return 0

    def longest(self, config: Any) -> tuple[int, str] | None:
        """How many positions a sequence may have, answer included, and what is beyond that; None: any number."""
        return None

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        """Where the tokens of each encoded picture or video lie.

        Parameters
        ----------
        base : nn.Module
            The module that encodes them; its `config` is the model's.
        modality : {"image", "video"}
        inputs : mapping
            Arguments of the method that encoded them; empty if it ran before the model was pruned.
        features : Tensor or sequence of Tensor, (tokens, D) each
            What goes in place of the placeholders.

        Returns
        -------
        list of Tensor, (n, 3), int64
            One per picture or video, in the order of the prompt: grid (from 0 within it), row and column of each
            placeholder. -1 for tokens without a place (newlines, class tokens), which are never pruned.
        """
        raise NotImplementedError(f"{type(self).__name__} does not override cells")

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        """The image that each unit returned by `cells` belongs to, for families that return tiles.

        Parameters
        ----------
        labels : Tensor, (L,), int64
            Of one row: equal where the prompt has equal tokens (its `input_ids`, if those are known).
        places : sequence of Tensor, (n,), int64
            Placeholders of each unit.
        """
        return list(range(len(places)))

    def layout(
        self, labels: Tensor, found: Mapping[str, Tensor], encoded: Mapping[str, Sequence[Tensor]]
    ) -> list[Layout]:
        """One Layout per row of a batch, empty ones for text.

        Parameters
        ----------
        labels : Tensor, (B, L), int64
            See `group`.
        found : mapping of str to Tensor, (B, L), bool
            By modality, where the placeholders are.
        encoded : mapping
            What `cells` returned, by modality. With several sequences per prompt (beams) the rows are repeated, these
            are not.
        """
        rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in labels]
        for modality, units in encoded.items():
            masks = found[modality].cpu()
            copies, rest = divmod(int(masks.sum()), max(1, sum(map(len, units))))
            if rest or not copies or len(labels) % copies:
                raise AdaptPruneError(
                    f"the prompts have {int(masks.sum())} {modality} placeholders, not a multiple of the "
                    f"{sum(map(len, units))} that the {modality}s take: build the prompts with the model's own "
                    "processor, and read each in one forward (no prefill_chunk_size)."
                )
            for row, mask in enumerate(masks):
                if row % copies == 0:
                    taken, units = _take(units, int(mask.sum()), modality)
                parts = mask.nonzero()[:, 0].split([len(unit) for unit in taken])
                rows[row] += zip(parts, taken, strict=True)
        return [self.row(line, parts) for line, parts in zip(labels, rows, strict=True)]

    def row(self, labels: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Layout:
        """The layout of one row.

        Parameters
        ----------
        labels : Tensor, (L,), int64
            See `group`.
        parts : sequence of (Tensor, Tensor)
            Of each unit, the places of its placeholders, (n,), and its cells, (n, 3).
        """
        parts = sorted((part for part in parts if len(part[0])), key=lambda part: int(part[0][0]))
        if not parts:
            return Layout.empty(labels.device)
        coords = stacked(*(cells.cpu() for _, cells in parts))
        images = self.group(labels.cpu(), [places for places, _ in parts])
        owners = [torch.full((len(places),), image) for (places, _), image in zip(parts, images, strict=True)]
        placed = coords[:, 0] >= 0
        sources = [
            torch.stack([torch.full((len(places),), unit), torch.arange(len(places))], dim=1)
            for unit, (places, _) in enumerate(parts)
        ]
        fields = (torch.cat([places for places, _ in parts]), coords, torch.cat(owners), torch.cat(sources))
        positions, coords, owned, source = (each[placed].to(labels.device) for each in fields)
        return Layout(positions, coords, owned, source, [getattr(cells, SEEN, None) for _, cells in parts])


def _take(units: Sequence[Tensor], count: int, modality: str) -> tuple[list[Tensor], Sequence[Tensor]]:
    """The first units that have `count` tokens together, and the others."""
    taken: list[Tensor] = []
    while count > 0 and len(taken) < len(units):
        count -= len(units[len(taken)])
        taken.append(units[len(taken)])
    if count:
        raise AdaptPruneError(
            f"a prompt's {modality} placeholders do not match its {modality}s: build it with the model's own processor."
        )
    return taken, units[len(taken) :]


def argument(inputs: Mapping[str, Any], name: str) -> Any:
    """An argument that the pictures or videos were encoded with; AdaptPruneError if that was not seen."""
    if inputs.get(name) is None:
        raise AdaptPruneError(
            f"images or videos were encoded before the model was pruned, so their {name} was not seen: encode them "
            "while it is."
        )
    return inputs[name]


def join(first: Layout, second: Layout, offset: int) -> Layout:
    """The visual tokens of a sequence and of one that begins `offset` positions after it."""
    if not first.positions.numel() or not second.positions.numel():
        lone = first if first.positions.numel() else second
        return lone if lone is first else Layout(second.positions + offset, second.coords, second.images)
    grids = torch.tensor([int(first.coords[:, 0].max()) + 1, 0, 0], device=second.coords.device)
    return Layout(
        torch.cat([first.positions, second.positions + offset]),
        torch.cat([first.coords, second.coords + grids]),
        torch.cat([first.images, second.images + first.images.max() + 1]),
    )


def raster(grids: int, rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Coordinates of `grids` full grids one after another, each row by row: (grids * rows * columns, 3), int64."""
    axes = [torch.arange(size, device=device) for size in (grids, rows, columns)]
    return torch.cartesian_prod(*axes)


def stacked(*grids: Tensor) -> Tensor:
    """Cells of several grids of one picture after one another, each numbered from 0 before, (n, 3)."""
    lines, number = [], 0
    for cells in grids:
        lines.append(torch.where(cells < 0, cells, cells + torch.tensor([number, 0, 0])))
        number += int(cells[:, 0].max()) + 1 if len(cells) else 0
    return torch.cat(lines)


def lined(rows: int, columns: int) -> Tensor:
    """Cells of one grid each of whose rows ends with a token without a place, (rows * (columns + 1), 3), int64."""
    grid = raster(1, rows, columns).view(rows, columns, 3)
    return torch.cat([grid, placeless(rows)[:, None]], dim=1).view(-1, 3)


def placeless(count: int) -> Tensor:
    """Cells of `count` tokens that have no place on a grid, (count, 3), int64."""
    return torch.full((count, 3), -1)


def flat(features: Sequence[Tensor] | Tensor) -> Tensor:
    """All features in one line, (tokens, D), whichever way a release puts them together."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.flatten(0, -2) for part in parts])


def squares(features: Sequence[Tensor] | Tensor, extra: int = 0, group: int = 1) -> list[Tensor]:
    """Cells of pictures with one square grid each, from the features of each, (tokens, D).

    Parameters
    ----------
    extra : int
        Tokens without a place in front of each picture's (class tokens).
    group : int
        Consecutive pictures that make one unit (frames of a video).
    """
    tokens = len(features[0]) - extra
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise AdaptPruneError(f"{tokens} visual tokens per picture are not a square grid.")
    frames = [torch.cat([placeless(extra), raster(1, side, side)]) for _ in range(group)]
    for number, cells in enumerate(frames):
        cells[cells[:, 0] >= 0, 0] = number
    return [torch.cat(frames)] * (len(features) // group)
