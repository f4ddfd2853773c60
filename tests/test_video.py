"""Videos, from prepared tensors: transformers' video processors need torchvision."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune.families import FAMILIES
from adaptprune.testing.oracle import hiding
from adaptprune.testing.specimen import VIDEO, VOCABULARY
from adaptprune.testing.zoo import specimen
from tests.families import TOLERANCE, first_layer, generate, gone

FRAMES = 4
#: Rows and columns of a frame's tokens.
SHAPES = {"llava_onevision": (2, 2), "llava_next_video": (2, 2), "video_llava": (4, 4)}
VIDEOS = pytest.mark.parametrize(
    "family", [name for name in adaptprune.list_families() if FAMILIES.get(name).supports["video"]]
)


def video_inputs(family: str, frames: int = 4, rows: int = 1) -> dict[str, torch.Tensor]:
    """A batch with a video in every prompt, as the processor would prepare it from `frames` frames."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(VOCABULARY["w0"], len(VOCABULARY), (rows, 9), generator=random)
    if family.startswith("qwen"):
        grid = torch.tensor([[frames, 4, 6]] * rows)  # patches; merged 2 x 2
        pixels = torch.rand(rows * frames * 24, 3 * 2 * 7 * 7, generator=random)
        start, end = VOCABULARY["<|vision_start|>"], VOCABULARY["<|vision_end|>"]
        if family.startswith("qwen3"):  # every frame apart, behind its time
            middle = [token for frame in range(frames) for token in [80 + frame, start, *[VIDEO] * 6, end]]
        else:
            middle = [start, *[VIDEO] * (6 * frames), end]
        more = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    else:
        tokens = {"llava_onevision": 4 * frames + 1, "llava_next_video": 4 * frames, "video_llava": 17 * frames}[family]
        middle = [VIDEO] * tokens
        more = {"pixel_values_videos": torch.rand(rows, frames, 3, 28, 28, generator=random)}
    visual = torch.tensor([middle] * rows)
    ids = torch.cat([words[:, :3], visual, words[:, 3:]], dim=1)
    if family.startswith("qwen"):
        more["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


@VIDEOS
@pytest.mark.parametrize("budget", ["image", "grid"])
@torch.no_grad()
def test_videos_equal_the_oracle(family, budget):
    one, inputs, layer = specimen(family), video_inputs(family, FRAMES, rows=2), first_layer(family)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.4, layer=layer, budget=budget) as report:
        words, logits = generate(one, inputs)
    shape = SHAPES.get(family, (2, 3))
    for ids, sample in zip(inputs["input_ids"], report.samples, strict=True):
        assert sample.grids == [(0, *shape)] * FRAMES
        size = shape[0] * shape[1]
        expected = FRAMES * int(0.4 * size) if budget == "grid" else int(0.4 * size * FRAMES)
        assert sample.images == [(FRAMES * size, expected)]
        assert (ids[sample.kept] == VIDEO).all()
        if budget == "grid":
            assert [sum(cell[0] == frame for cell in sample.cells) for frame in range(FRAMES)] == [int(0.4 * size)] * 4
    with hiding(one.model, layer, gone(one, inputs, report)):
        full, oracle = generate(one, inputs)
    torch.testing.assert_close(logits, oracle, atol=TOLERANCE, rtol=0)
    assert torch.equal(words, full)


@VIDEOS
@torch.no_grad()
def test_a_forward_with_a_video_and_keep_ratio_one(family):
    one, inputs = specimen(family), video_inputs(family, FRAMES)
    plain = one.model(**inputs).logits
    with adaptprune.prune(one.model, "random", keep_ratio=1, layer=LAYERS - 1) as report:
        assert torch.equal(one.model(**inputs).logits, plain)
    rows, columns = SHAPES.get(family, (2, 3))
    assert report.num_visual == FRAMES * rows * columns
