"""Any model: its grids are read from what says so among the arguments that its pictures were encoded with.

In this order: grids of patches (`*_grid_thw`, `*_grid_hw`, `spatial_shapes`, `target_sizes`), positions of patches
(`*_position_ids`), sizes in pixels (`image_sizes`); else a picture of n * n tokens is a square. What is left has no
grid that is known: it is one row, which is noted, so that the report says it.

How many patches make a token is found by counting: the numbers have to come out right for every picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaptprune.families.base import Family, raster
from adaptprune.hooks.seams.parts import PICTURES, text_config

#: Ends of the names of arguments that hold the grid of each picture or tile, in patches: (n, 2) or, with time, (n, 3).
GRIDS = ("grid_thw", "grid_hw", "spatial_shapes", "target_sizes")
#: The end of that which holds the place of each patch, (n, patches, 2): column, row; -1 is padding.
PLACES = "position_ids"
#: What holds heights and widths in pixels, (n, 2).
PIXELS = "image_sizes"
#: Configs of decoders with sparse attention say by one of these how many keys a token may choose.
BUDGETS = ("index_topk", "indexer_budget")
NO_GRID = "no grid was found for its visual tokens: they count as one row"

#: Frames, rows and columns of tokens.
Shape = tuple[int, int, int]


class Generic(Family):
    """Serves every model type that has no family of its own, and is what most of these are made from."""

    summary: ClassVar[str] = "found by structure"

    def smallest_layer(self, config: Any) -> int:
        return deepstack(config)

    def longest(self, config: Any) -> tuple[int, str] | None:
        found = (getattr(text_config(config), name, None) for name in BUDGETS)
        budget = next((int(each) for each in found if each), None)
        return None if budget is None else (budget, "its sparse attention has to choose among keys")

    def cells(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Tensor]:
        return [raster(*shape) for shape in self.shapes(base, modality, inputs, features)]

    def shapes(self, base: Any, modality: str, inputs: Mapping[str, Any], features: Any) -> list[Shape]:
        """Frames, rows and columns of each picture, video or tile, in the order of the prompt."""
        counts, total = counted(features)
        for find in (_by_grids, _by_places, _by_pixels):
            shapes = find(base, modality, inputs, counts, total)
            if shapes is not None:
                return shapes
        rows = queries(base.config)
        if counts is None:  # one line of features: as many pictures as were handed over, if these are alike
            pictures = _pictures(inputs, modality)
            rows = rows or not pictures or total % pictures > 0
            counts = [total] if rows else [total // pictures] * pictures
        shapes = [(1, 1, count) if rows else _square(count) for count in counts]
        if any(count > 1 and rows == 1 for count, (_, rows, _) in zip(counts, shapes, strict=True)):
            self.note(NO_GRID)
        return shapes


def counted(features: Any) -> tuple[list[int] | None, int]:
    """Tokens of each picture, if the features are apart, and of all together."""
    if isinstance(features, Tensor):
        if features.ndim == 2:
            return None, len(features)
        return [features[0].numel() // features.shape[-1]] * len(features), features.numel() // features.shape[-1]
    counts = [part.numel() // part.shape[-1] for part in features]
    return counts, sum(counts)


def _pictures(inputs: Mapping[str, Any], modality: str) -> int:
    """How many pictures of one size an encoder was handed, (n, 3, H, W); 0 if they are not of that form."""
    pixels = inputs.get(PICTURES[modality])
    return len(pixels) if isinstance(pixels, Tensor) and pixels.ndim == 4 else 0


def _square(count: int) -> Shape:
    side = math.isqrt(count)
    return (1, side, side) if side * side == count else (1, 1, count)


def _named(inputs: Mapping[str, Any], modality: str, *ends: str) -> Tensor | None:
    """The first argument that ends so and is not about the other modality."""
    other = {"image": "video", "video": "image"}[modality]
    for end in ends:
        for name, value in inputs.items():
            if name.endswith(end) and not name.startswith(other) and isinstance(value, (Tensor, list, tuple)):
                return torch.as_tensor(value) if not isinstance(value, Tensor) else value
    return None


def _all_fit(
    rows: Sequence[Sequence[int]],
    counts: list[int] | None,
    total: int,
    shape: Callable[[Sequence[int], int], Shape],
    sizes: Sequence[int] | None = None,
) -> list[Shape] | None:
    """The shape of each row by one rule for all of them: the first one by which the numbers of tokens come out right.

    Parameters
    ----------
    shape : callable
        From a row and the side of a token to the shape of its tokens.
    sizes : sequence of int, optional
        The sides to try; otherwise all.
    """
    for size in sizes or range(1, max((max(row) for row in rows), default=0) + 1):
        shapes = [shape(row, size) for row in rows]
        found = [math.prod(each) for each in shapes]
        if found == counts if counts is not None else sum(found) == total:
            return shapes
    return None


def _by_grids(
    base: Any, modality: str, inputs: Mapping[str, Any], counts: list[int] | None, total: int
) -> list[Shape] | None:
    grids = _named(inputs, modality, *GRIDS)
    if grids is None or grids.ndim != 2 or grids.shape[1] not in (2, 3):
        return None
    rows = [[1, *row] if len(row) == 2 else row for row in grids.tolist()]
    if counts is not None and len(counts) != len(rows):
        counts = None  # tiles of one picture in one piece
    rules: tuple[Callable[[Sequence[int], int], Shape], ...] = (
        lambda row, size: (row[0], row[1] // size, row[2] // size),
        lambda row, size: (1, row[1] // size, row[2] // size),  # all frames pooled into one
        lambda row, size: (row[0] // 2, row[1] // size, row[2] // size),  # frames merged by twos
    )
    merge = _side(getattr(base.config, "vision_config", None))
    for sides in ([merge], None) if merge else (None,):  # what the config says comes first
        fits = [shapes for rule in rules if (shapes := _all_fit(rows, counts, total, rule, sides)) is not None]
        if fits and (sides or all(shapes == fits[0] for shapes in fits)):
            return fits[0]
    return _by_sizes_of_their_own(inputs, modality, rows, counts, total)


def _side(vision: Any) -> int | None:
    """How many patches a side make a token, as a vision config says it."""
    merge = getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_kernel_size", None)
    return int(merge[0]) if isinstance(merge, (list, tuple)) else merge


def _by_sizes_of_their_own(
    inputs: Mapping[str, Any], modality: str, rows: list[list[int]], counts: list[int] | None, total: int
) -> list[Shape] | None:
    """Pictures that are merged by different factors."""
    sizes = _named(inputs, modality, "merge_sizes")
    if sizes is None or len(sizes) != len(rows):
        return None
    shapes = [
        (row[0], row[1] // size, row[2] // size) for row, size in zip(rows, sizes.flatten().tolist(), strict=True)
    ]
    found = [math.prod(shape) for shape in shapes]
    return shapes if (found == counts if counts is not None else sum(found) == total) else None


def _by_places(
    base: Any, modality: str, inputs: Mapping[str, Any], counts: list[int] | None, total: int
) -> list[Shape] | None:
    places = _named(inputs, modality, f"{modality}_{PLACES}")
    if places is None or places.shape[-1] != 2:
        return None
    ends = places.flatten(0, -3).amax(dim=-2).tolist()  # (column, row) of the last patch
    rows = [[1, row + 1, column + 1] for column, row in ends if row >= 0]
    if counts is not None and len(counts) != len(rows):
        counts = None
    return _all_fit(rows, counts, total, lambda row, size: (1, row[1] // size, row[2] // size))


def _by_pixels(
    base: Any, modality: str, inputs: Mapping[str, Any], counts: list[int] | None, total: int
) -> list[Shape] | None:
    sizes = _named(inputs, modality, PIXELS)
    if modality != "image" or sizes is None or sizes.ndim != 2 or sizes.shape[1] != 2:
        return None
    if counts is not None and len(counts) != len(sizes):
        return None
    rows = [[1, *row] for row in sizes.tolist()]
    patch = getattr(getattr(base.config, "vision_config", None), "patch_size", None)
    sides = patch[0] if isinstance(patch, (list, tuple)) else patch
    steps = range(sides, max(map(max, rows)) + 1, sides) if sides else [2**power for power in range(10)]
    floor = _all_fit(rows, counts, total, lambda row, size: (1, row[1] // size, row[2] // size), steps)
    return floor or _all_fit(rows, counts, total, lambda row, size: (1, -(-row[1] // size), -(-row[2] // size)), steps)


def queries(config: Any) -> bool:
    """Whether a config speaks of learned queries, whose number may be a square and is no grid."""
    vision = getattr(config, "vision_config", None)
    names = [*vars(config), *(vars(vision) if hasattr(vision, "__dict__") else ())]
    return any(word in name for name in names for word in ("quer", "qformer", "perceiver", "resampler"))


def deepstack(config: Any) -> int:
    """The first decoder layer before which the features of early vision layers have been added to all visual tokens."""
    entries = [layer for _, layer in getattr(config, "deepstack_layer_map", None) or ()]
    entries += getattr(config, "spatial_target_layers", None) or ()
    if entries:  # added on the way into these layers
        return int(max(entries))
    vision = getattr(config, "vision_config", None)
    indexes = getattr(vision, "deepstack_visual_indexes", None) or getattr(config, "deepstack_visual_indexes", None)
    return len(indexes or ())  # added on the way out of the first layers
