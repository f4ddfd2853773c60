"""Layers of rules that act several times."""

from __future__ import annotations

import math

from adaptprune.errors import AdaptPruneError

#: The published layers are those of a decoder that has this many.
PUBLISHED = 32


def scaled(name: str, layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Layers of a decoder of 32, in one that has `num_layers`: in proportion, rounded, ascending from 1."""
    found: list[int] = []
    for layer in layers:
        least = found[-1] + 1 if found else 1
        found.append(max(least, math.floor(layer * num_layers / PUBLISHED + 0.5)))
    if found and found[-1] > num_layers - 1:
        raise AdaptPruneError(
            f"{name} with layers={layers} of {PUBLISHED} needs layer {found[-1]}, and this decoder's last one is "
            f"{num_layers - 1}: use earlier or fewer layers, or another method."
        )
    return tuple(found)
