"""What became of a prompt that was read: visual tokens per image, places of the kept ones, bytes of its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptprune.families import Family
from adaptprune.report import PruneReport
from adaptprune.serve.jobs import ImageUse


def image_uses(
    family: Family, config: Any, inputs: dict[str, Tensor], report: PruneReport | None, want_kept: bool
) -> list[ImageUse]:
    """One entry per image of a prompt, pruned or not.

    Parameters
    ----------
    inputs : dict of str to Tensor
        Model inputs of a batch of one.
    report : PruneReport or None
        None if the prompt was read without pruning.
    want_kept : bool
        Whether to list the places of the kept tokens.
    """
    layouts = family.layout(config, inputs)
    if layouts is None:
        return []
    (layout,) = layouts
    positions, coords, images = layout.positions.cpu(), layout.coords.cpu(), layout.images.cpu()
    kept = torch.ones(len(positions), dtype=torch.bool)
    if report is not None and report.num_visual:
        kept = torch.isin(positions, torch.tensor(report.samples[0].kept, dtype=torch.int64))
    uses = []
    for image in range(int(images.max()) + 1 if len(images) else 0):
        member = images == image
        places = coords[member]
        first = int(places[:, 0].min())
        grids = [
            tuple((places[places[:, 0] == grid][:, 1:].max(0).values + 1).tolist())
            for grid in torch.unique(places[:, 0]).tolist()
        ]
        stays = places[kept[member]] - torch.tensor([first, 0, 0])
        uses.append(
            ImageUse(len(places), len(stays), grids, [tuple(place) for place in stays.tolist()] if want_kept else None)
        )
    return uses


def kv_sizes(cache: Any, length: int) -> tuple[int, int]:
    """Bytes that a cache holds, and those that it would hold with all `length` positions in every layer."""
    tensors = [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]
    held = [keys.nbytes + values.nbytes for keys, values in tensors]
    whole = [size * length // max(1, keys.shape[-2]) for size, (keys, _) in zip(held, tensors, strict=True)]
    return sum(held), sum(whole)
