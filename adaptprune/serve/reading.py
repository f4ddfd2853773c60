"""What became of a prompt that was read: visual tokens per image, places of the kept ones, bytes of its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

from torch import Tensor

from adaptprune.families import Family
from adaptprune.hooks.encode import watch
from adaptprune.report import SampleReport
from adaptprune.serve.jobs import ImageUse


@contextmanager
def unpruned(model: Any, family: Family, ids: Tensor) -> Iterator[SampleReport]:
    """The report of one prompt that is read without pruning, filled in at the end: every visual token is kept.

    Parameters
    ----------
    ids : Tensor, (1, L), int64
    """
    calls, sample = local(), SampleReport()
    calls.encoded = {}
    undo = watch(family.base(model), family, calls)
    try:
        yield sample
    finally:
        for remove in undo:
            remove()
    if not calls.encoded:
        return
    (layout,) = family.layout(model.config, ids, calls.encoded)
    sample.cells = [tuple(cell) for cell in layout.coords.tolist()]
    sample.kept = layout.positions.tolist()
    sample.num_visual = sample.num_kept = len(sample.kept)
    owners = layout.images.tolist()
    sample.images = [(owners.count(image),) * 2 for image in sorted(set(owners))]
    for grid in sorted(set(layout.coords[:, 0].tolist())):
        member = layout.coords[:, 0] == grid
        rows, columns = (layout.coords[member, 1:].max(dim=0).values + 1).tolist()
        sample.grids.append((int(layout.images[member][0]), rows, columns))


def image_uses(sample: SampleReport, want_kept: bool) -> list[ImageUse]:
    """One entry per image of a prompt, pruned or not.

    Parameters
    ----------
    sample : SampleReport
    want_kept : bool
        Whether to list the places of the kept tokens.
    """
    uses = []
    for image, (visual, kept) in enumerate(sample.images):
        grids = [grid for grid, (owner, _, _) in enumerate(sample.grids) if owner == image]
        first = min(grids, default=0)
        cells = [(grid - first, row, column) for grid, row, column in sample.cells if grid in grids]
        shapes = [sample.grids[grid][1:] for grid in grids]
        uses.append(ImageUse(visual, kept, shapes, cells if want_kept else None))
    return uses


def kv_sizes(cache: Any, length: int) -> tuple[int, int]:
    """Bytes that a cache holds, and those that it would hold with all `length` positions in every layer."""
    tensors = [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]
    held = [keys.nbytes + values.nbytes for keys, values in tensors]
    whole = [size * length // max(1, keys.shape[-2]) for size, (keys, _) in zip(held, tensors, strict=True)]
    return sum(held), sum(whole)
