"""What became of the images of a prompt that was read: their tokens, and the places of the kept ones."""

from __future__ import annotations

from adaptprune.engines.batch.jobs import ImageUse
from adaptprune.report import SampleReport


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
