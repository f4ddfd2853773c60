"""Llama 4: rows of tiles end with a mark, and another stands before the picture in small, which comes last."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from adaptprune.families.generic import Generic
from adaptprune.hooks.seams.parts import text_config


class Llama4(Generic):
    """Some of its layers scale queries by their place in what they are handed."""

    def longest(self, config: Any) -> tuple[int, str] | None:
        text = text_config(config)
        if not getattr(text, "attn_temperature_tuning", False):
            return super().longest(config)
        return int(text.floor_scale) - 1, "queries are scaled by their place, which pruning changes"

    def group(self, labels: Tensor, places: Sequence[Tensor]) -> list[int]:
        start = _start(labels, places)
        images = [0]
        for before, after in pairwise(places):
            gap = labels[before[-1] + 1 : after[0]]
            images.append(images[-1] + int(len(gap) > 2 or bool((gap == start).any())))
        return images


def _start(labels: Tensor, places: Sequence[Tensor]) -> int:
    """The mark in front of every picture: right before its first tile, or before the mark of a lone one."""
    first = int(places[0][0])
    several = len(places) > 1 and int(places[1][0]) - int(places[0][-1]) == 2  # one mark between the first two
    place = first - (1 if several else 2)
    return int(labels[place]) if place >= 0 else -1
