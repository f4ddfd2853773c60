"""What one row of the tables says of a model type, and inputs made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptprune.testing.shapes.shrink import END, START
from adaptprune.testing.specimen import BOS, IMAGE, VOCABULARY, WORDS


@dataclass
class Pictures:
    """What a processor would have made of pictures.

    Attributes
    ----------
    counts : list of int
        Placeholders of every picture.
    tensors : dict
        What goes to the model along with the prompt.
    widths : list of int, optional
        Placeholders of a row of every picture, where rows are set apart by text.
    breaks : tuple of int
        What stands after a row, and after the last.
    """

    counts: list[int]
    tensors: dict[str, Tensor]
    widths: list[int] | None = None
    breaks: tuple[int, int] = (0, 0)

    def tokens(self, number: int) -> list[int]:
        """Ids of one picture."""
        if self.widths is None:
            return [IMAGE] * self.counts[number]
        high, wide = self.counts[number] // self.widths[number], self.widths[number]
        return [*[IMAGE] * wide, self.breaks[0]] * (high - 1) + [*[IMAGE] * wide, self.breaks[1]]


@dataclass
class Row:
    """One model type.

    Attributes
    ----------
    pictures : callable
        From the model's config to its pictures.
    sizes : dict
        Arguments of the config over those of `small`, dict by dict.
    binding : dict
        The same, where sparse budgets are to be smaller than the prompt.
    after : callable
        Changes the model once it is built: stubs a tower, wakes parameters that start as zeros.
    around : tuple of tuple of int
        Tokens before and after every picture.
    types : str
        The name of the input that tells pictures (1) from text (0), if the model takes one.
    """

    pictures: Callable[[Any], Pictures]
    sizes: dict[str, Any] = field(default_factory=dict)
    binding: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Any], None] | None = None
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((START,), (END,))
    types: str | None = None
    note: str = ""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(count: int, seed: int = 0) -> list[int]:
    """Ids of words."""
    drawn = torch.randint(len(WORDS), (count,), generator=torch.Generator().manual_seed(seed))
    return [VOCABULARY[WORDS[int(number)]] for number in drawn]


def prompt(row: Row, config: Any) -> dict[str, Tensor]:
    """Inputs of one prompt: words, its pictures with words between them, words."""
    made = row.pictures(config)
    before, after = row.around
    ids = [BOS, *words(4)]
    for number in range(len(made.counts)):
        ids += [*before, *made.tokens(number), *after, *words(3, seed=1 + number)]
    ids += words(6, seed=9)
    input_ids = torch.tensor([ids])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **made.tensors}
    if row.types:
        inputs[row.types] = (input_ids == IMAGE).long()
    return inputs


#: Heights and widths in patches.
GRIDS = ((8, 10), (4, 14))


def thw(*, patch: int = 7, time: int = 2, merge: int = 2, newlines: bool = False, ends: int = 0) -> Any:
    """Pictures as rows of patches and a grid of (time, height, width) each.

    Parameters
    ----------
    time : int
        Frames of a patch.
    newlines : bool
        Whether the tower puts a token at the end of every row, in a placeholder of its own.
    ends : int
        Further placeholders of every picture, around it.
    """

    def made(config: Any) -> Pictures:
        grid = torch.tensor([[1, high, wide] for high, wide in GRIDS])
        rows = noise(int(grid.prod(1).sum()), 3 * time * patch * patch)
        counts = [high // merge * (wide // merge + newlines) + ends for high, wide in GRIDS]
        return Pictures(counts, {"pixel_values": rows, "image_grid_thw": grid})

    return made


def squares(count: int, *, size: int = 28, pictures: int = 2) -> Any:
    """Square pictures of `count` placeholders each."""

    def made(config: Any) -> Pictures:
        return Pictures([count] * pictures, {"pixel_values": noise(pictures, 3, size, size)})

    return made
