"""Grids of any model, from what says so among its arguments: worked out by hand, not by a model."""

from __future__ import annotations

from types import SimpleNamespace as Config

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.families import Layout
from adaptprune.families.generic import Generic
from adaptprune.families.tiles import Adjacent, MarkedFirst, MarkedLast, Separated
from adaptprune.hooks.seams.catalogue import image_text_types
from adaptprune.testing.shapes import shape
from tests.families import all_of, first_layer, specimen


def base(vision: dict | None = None, **config) -> Config:
    return Config(config=Config(vision_config=Config(**(vision or {})), **config))


def tokens(*counts: int) -> list[torch.Tensor]:
    return [torch.zeros(count, 2) for count in counts]


def found(features, inputs, modality="image", **options) -> tuple[list[tuple[int, int, int]], list[str]]:
    """Grids, rows and columns of every unit, and the notes."""
    family = Generic()
    shapes = []
    for cells in family.cells(base(**options), modality, inputs, features):
        grids, rows, columns = (cells.amax(dim=0) + 1).tolist()
        full = torch.cartesian_prod(torch.arange(grids), torch.arange(rows), torch.arange(columns))
        assert torch.equal(cells, full.view(-1, 3))
        shapes.append((grids, rows, columns))
    return shapes, family.notes


@pytest.mark.parametrize(
    ("features", "inputs", "expected"),
    [
        # patches merged by twos; by none; a video over time; apart, or in one line
        (tokens(6, 8), {"image_grid_thw": torch.tensor([[1, 4, 6], [1, 8, 4]])}, [(1, 2, 3), (1, 4, 2)]),
        (tokens(24), {"image_grid_thw": torch.tensor([[1, 4, 6]])}, [(1, 4, 6)]),
        (torch.zeros(14, 2), {"image_grid_thw": torch.tensor([[1, 4, 6], [1, 8, 4]])}, [(1, 2, 3), (1, 4, 2)]),
        # heights and widths without time, by several names
        (tokens(6), {"image_grid_hw": torch.tensor([[4, 6]])}, [(1, 2, 3)]),
        (tokens(6, 4), {"spatial_shapes": torch.tensor([[4, 6], [4, 4]])}, [(1, 2, 3), (1, 2, 2)]),
        (tokens(2), {"target_sizes": torch.tensor([[4, 8]])}, [(1, 1, 2)]),
        # the place of every patch: column, row; -1 is padding
        (
            tokens(6),
            {"image_position_ids": torch.tensor([[[x, y] for y in range(4) for x in range(6)] + [[-1, -1]] * 5])},
            [(1, 2, 3)],
        ),
        # pixels: 14 of them a patch, which is not among the arguments
        (tokens(6), {"image_sizes": torch.tensor([[28, 42]])}, [(1, 2, 3)]),
        # nothing: squares
        (torch.zeros(2, 9, 2), {}, [(1, 3, 3), (1, 3, 3)]),
        (tokens(16, 4), {}, [(1, 4, 4), (1, 2, 2)]),
    ],
)
def test_grids_are_read_from_what_says_so(features, inputs, expected):
    vision = {"patch_size": 14} if "image_sizes" in inputs else None
    assert found(features, inputs, vision=vision) == (expected, [])


@pytest.mark.parametrize(
    ("count", "expected"), [(24, (4, 2, 3)), (6, (1, 2, 3)), (12, (2, 2, 3))], ids=["kept", "pooled", "by twos"]
)
def test_frames_of_a_video_stay_or_are_pooled(count, expected):
    grid = {"video_grid_thw": torch.tensor([[4, 4, 6]])}
    assert found(tokens(count), grid, "video", vision={"spatial_merge_size": 2}) == ([expected], [])


def test_the_grids_of_the_other_modality_are_not_taken():
    inputs = {"image_grid_thw": torch.tensor([[1, 6, 4]]), "video_grid_thw": torch.tensor([[1, 4, 6]])}
    assert found(tokens(6), inputs, "video")[0] == [(1, 2, 3)]
    assert found(tokens(6), inputs, "image")[0] == [(1, 3, 2)]


def test_pictures_merged_by_factors_of_their_own():
    inputs = {"image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]), "image_merge_sizes": torch.tensor([1, 2])}
    assert found(tokens(16, 4), inputs)[0] == [(1, 4, 4), (1, 2, 2)]


@pytest.mark.parametrize("features", [tokens(7), torch.zeros(1, 7, 2)])
def test_what_has_no_grid_is_one_row_and_says_so(features):
    shapes, (note,) = found(features, {})
    assert shapes == [(1, 1, 7)]
    assert "no grid" in note
    assert "one row" in note


def test_a_grid_that_does_not_fit_is_not_believed():
    shapes, notes = found(tokens(7), {"image_grid_thw": torch.tensor([[1, 4, 6]])})
    assert shapes == [(1, 1, 7)]
    assert len(notes) == 1


@pytest.mark.parametrize("family", ["aria", "idefics2"])
@torch.no_grad()
def test_learned_queries_are_one_row_although_they_may_be_a_square(family):
    one = specimen(family)
    with adaptprune.prune(one.model, "random", keep_ratio=0.5, layer=2) as report:
        one.model(**one.inputs(2))
    (sample,) = report.samples
    assert all(rows == 1 for _, rows, _ in sample.grids)
    assert [len(sample.images), len(sample.grids)] == [2, 2]
    assert any("no grid" in note for note in report.notes)


@pytest.mark.parametrize(
    "family", ["llava_next", "llava_next_video", "llava_onevision", "granite4_vision", "hunyuan_vl"]
)
@pytest.mark.parametrize("method", ["random", "grid"])
@torch.no_grad()
def test_newline_tokens_never_leave(family, method):
    """Whatever is dropped is a place in a picture: what is among the placeholders and none stays."""
    one = specimen(family)
    inputs = one.inputs(2)
    places = set(all_of(one, inputs)[0])
    marks = set((inputs["input_ids"][0] == one.image_token_id).nonzero()[:, 0].tolist()) - places
    assert marks
    cache = {}
    with adaptprune.prune(one.model, method, keep_ratio=0.05, layer=first_layer(family)) as report:
        cache = one.model(**inputs, use_cache=False).logits
    assert cache.shape[1] == inputs["input_ids"].shape[1] - report.num_visual + report.num_kept
    assert set(report.samples[0].kept) <= places
    assert report.num_visual == len(places)


def grouped(family, labels: list[int], image: int = 9) -> list[int]:
    """The picture of each tile: a tile is a run of two placeholders."""
    row = torch.tensor(labels)
    starts = [n for n in range(len(labels) - 1) if labels[n : n + 2] == [image, image]]
    starts = [n for n in starts if (n - starts[0]) >= 0]
    taken, places = -1, []
    for start in starts:
        if start > taken:
            places.append(torch.tensor([start, start + 1]))
            taken = start + 1
    return family.group(row, places)


def test_tiles_are_grouped_as_one_picture():
    """Two pictures of different tile counts, by each of the ways in which prompts say it."""
    tile = [9, 9]
    adjacent = [1, *tile, *tile, *tile, 2, 3, *tile, 4]
    assert grouped(Adjacent(), adjacent) == [0, 0, 0, 1]
    separated = [1, *tile, 7, *tile, 7, *tile, 2, 3, *tile, 7, *tile]
    assert grouped(Separated(), separated) == [0, 0, 0, 1, 1]
    first = [1, 5, *tile, 6, *tile, 6, *tile, 2, 5, *tile, 3]
    assert grouped(MarkedFirst(), first) == [0, 0, 0, 1]
    last = [1, 11, *tile, 12, *tile, 5, *tile, 2, 11, *tile, 5, *tile, 3]
    assert grouped(MarkedLast(), last) == [0, 0, 0, 1, 1]
    assert grouped(Adjacent(), [*tile]) == [0]


@pytest.mark.parametrize(
    "family",
    ["internvl", "qianfan_ocr", "got_ocr2", "perception_lm", "cohere2_vision", "aya_vision", "ovis2", "lfm2_vl",
     "minicpmv4_6", "idefics3", "smolvlm", "granite_docling", "llama4", "step3p7"],
)  # fmt: skip
@torch.no_grad()
def test_two_pictures_of_different_tile_counts(family):
    """The processor's own prompts: tiles of a picture share its budget, and pictures are in their order."""
    one = specimen(family)
    with adaptprune.prune(one.model, "random", keep_ratio=0.5, layer=first_layer(family)) as report:
        one.model(**one.inputs(2))
        (sample,) = report.samples
        images = [image for image, _, _ in sample.grids]
        assert images == sorted(images)
        assert set(images) == {0, 1}
        assert images.count(0) != images.count(1) or len(set(one.sizes[:2])) == 2
        for number, (count, kept) in enumerate(sample.images):
            assert count == sum(rows * columns for image, rows, columns in sample.grids if image == number)
            assert kept == max(1, int(0.5 * count))


def test_an_empty_layout_has_no_grids():
    empty = Layout.empty(torch.device("cpu"))
    assert (empty.positions.numel(), tuple(empty.coords.shape), empty.images.numel()) == (0, (0, 3), 0)


@pytest.mark.skipif("dots3_note" not in image_text_types(), reason="this transformers has no dots 3 note")
@pytest.mark.parametrize("model_type", ["dots3_note"])
@torch.no_grad()
def test_a_sequence_longer_than_a_sparse_budget_is_refused(model_type):
    """Once an indexer has to choose among keys there is no independent check: the error says the length."""
    binds, loose = shape(model_type, binds=True), shape(model_type, binds=False)
    budget = Generic().longest(binds.model.config)[0]
    assert binds.inputs["input_ids"].shape[1] > budget
    with (
        adaptprune.prune(binds.model, "random", keep_ratio=0.5, layer=2, check=False),
        pytest.raises(AdaptPruneError, match=f"beyond {budget} its sparse attention"),
    ):
        binds.model(**binds.inputs)
    with adaptprune.prune(loose.model, "random", keep_ratio=0.5, layer=2, check=False) as report:
        loose.model(**loose.inputs)
    assert 0 < report.num_kept < report.num_visual
