"""The pictures of what was kept: groups are outlined, not patches, and what was dropped fades evenly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from adaptprune.report import SampleReport
from adaptprune.viz import CELL, LINE, overlay

GRID = (5, 6)
#: A block of four, one that touches it by a corner, one at the picture's edge.
KEPT = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (0, 5)]


def drawn(colour: tuple[int, int, int], kept: list[tuple[int, int]]) -> np.ndarray:
    """The overlay of a picture of one colour, (H, W, 3)."""
    rows, columns = GRID
    sample = SampleReport(grids=[(0, rows, columns)], cells=[(0, *cell) for cell in kept])
    return np.asarray(overlay([Image.new("RGB", (60, 50), colour)], sample)).astype(int)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 40, 90), (60, 60, 60)])
def test_an_outline_stands_out_from_any_picture(colour):
    """Across every border of a group: kept, white, black, dropped; with 3:1 between the neighbours white and black."""
    picture = drawn(colour, KEPT)
    middle = 3 * CELL // 2
    row = picture[middle]
    edge = 3 * CELL  # the right border of the block of four
    assert (row[edge - LINE : edge] == 255).all()
    assert (row[edge : edge + LINE] == 0).all()
    assert (row[edge - CELL : edge - LINE] == colour).all()
    faded = row[edge + LINE : edge + CELL]
    assert (faded == faded[0, 0]).all()
    assert abs(int(faded[0, 0]) - 56) < 80
    assert (picture[:LINE, 5 * CELL : 6 * CELL] == 255).all()  # also where the picture ends


def test_no_line_runs_through_a_group():
    picture = drawn((10, 200, 30), KEPT)
    inside = picture[CELL + LINE : 3 * CELL - LINE, CELL + LINE : 3 * CELL - LINE]
    assert (inside == (10, 200, 30)).all()
    everything = drawn((10, 200, 30), [(row, column) for row in range(GRID[0]) for column in range(GRID[1])])
    assert (everything[LINE:-LINE, LINE:-LINE] == (10, 200, 30)).all()
    nothing = drawn((10, 200, 30), [])
    assert (nothing == nothing[0, 0]).all()
