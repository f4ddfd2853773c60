"""Videos of real frames: small pictures that move, read by the PIL image processors.

transformers' video processors need torchvision. What they do with frames is done here by hand: Qwen's put two frames
into every patch, others read each by itself. Where a model reads a video as pictures, its own processor does all of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import adaptprune
from adaptprune.testing.specimen import IMAGE, VIDEO, VOCABULARY, resize
from tests.families import equal, first_layer, generate, gone, oracle, pruned, specimen

#: Grids over time.
FRAMES = 4
#: Of these a patch spans two frames.
PAIRS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v", "glm_ocr")
#: These have every frame apart in the prompt; in GLM's, frames carry the token of pictures.
APART = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "cosmos3_edge")
GLM = ("glm4v", "glm46v", "glm_ocr")
SINGLE = ("video_llama_3", "kimi_k25", "cosmos3_edge")
#: Visual tokens of a video, with newlines and class tokens, and rows and columns of a frame's.
LLAVA = {
    "llava_onevision": (4 * FRAMES + 1, (2, 2)),
    "llava_next_video": (4 * FRAMES, (2, 2)),
    "video_llava": (17 * FRAMES, (4, 4)),
}
VIDEOS = pytest.mark.parametrize("family", [*PAIRS, *SINGLE, *LLAVA])


def frames(count: int, size: tuple[int, int] = (42, 28), seed: int = 0) -> list[Image.Image]:
    """A bright square that moves over a noisy ground."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        pixels = random.integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
        pixels[6:18, 4 + 3 * number : 14 + 3 * number] = (250, 200, 40)
        made.append(Image.fromarray(pixels))
    return made


def patches(one, family: str, rows: int) -> dict[str, torch.Tensor]:
    """Patches and grids of a video per row, as the image processor has them of its frames."""
    step, videos = 2 if family in PAIRS else 1, []
    for row in range(rows):
        found = one.processor.image_processor(images=frames(step * FRAMES, seed=row), return_tensors="pt")
        shape, grid = found["pixel_values"].shape[1:], found["image_grid_thw"]
        each = found["pixel_values"].view(len(grid), -1, *shape)  # (frames, patches, ...)
        if step == 2:  # a picture is read as two equal frames
            parts = each.view(FRAMES, 2, each.shape[1], 3, 2, -1)
            each = torch.stack([parts[:, 0, :, :, 0], parts[:, 1, :, :, 1]], dim=3).flatten(2)
        videos.append(each.flatten(0, 1))
    line = [FRAMES, *grid[0, 1:].tolist()]
    inputs = {"pixel_values_videos": torch.cat(videos), "video_grid_thw": torch.tensor([line] * rows)}
    if family == "video_llama_3":
        inputs["video_merge_sizes"] = found["image_merge_sizes"][:1].repeat(rows)
    return inputs


def prompt(one, family: str, tokens: int) -> list[int]:
    """What stands for a video in a prompt, whose frames have as many tokens each."""
    start, end = VOCABULARY["<|vision_start|>"], VOCABULARY["<|vision_end|>"]
    if family in APART:  # behind its time
        return [token for frame in range(FRAMES) for token in [80 + frame, start, *[VIDEO] * tokens, end]]
    if family in GLM:
        config = one.model.config
        inner = [
            token
            for frame in range(FRAMES)
            for token in [config.image_start_token_id, *[IMAGE] * tokens, config.image_end_token_id, 80 + frame]
        ]
        return [config.video_start_token_id, *inner, config.video_end_token_id]
    return [start, *[VIDEO] * (tokens if family == "kimi_k25" else tokens * FRAMES), end]


def video_inputs(family: str, rows: int = 1) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    """A batch with a video in every prompt, and rows and columns of its grids."""
    one, random = specimen(family), torch.Generator().manual_seed(0)
    words = torch.randint(VOCABULARY["w0"], VOCABULARY["w0"] + 40, (rows, 9), generator=random)
    if family in LLAVA:
        tokens, shape = LLAVA[family]
        read = CLIPImageProcessorPil(**resize(28))
        pixels = [read(frames(FRAMES, seed=row), return_tensors="pt")["pixel_values"] for row in range(rows)]
        more, middle = {"pixel_values_videos": torch.stack(pixels)}, [VIDEO] * tokens
    else:
        more = patches(one, family, rows)
        _, height, width = more["video_grid_thw"][0].tolist()
        side = int(more["video_merge_sizes"][0]) if family == "video_llama_3" else 2
        shape = (height // side, width // side)
        middle = prompt(one, family, shape[0] * shape[1])
    visual = torch.tensor([middle] * rows)
    ids = torch.cat([words[:, :3], visual, words[:, 3:]], dim=1)
    if family in (*PAIRS, *APART):
        more["mm_token_type_ids"] = 2 * (ids == (IMAGE if family in GLM else VIDEO)).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}, shape


@VIDEOS
@pytest.mark.parametrize("budget", ["image", "grid"])
@torch.no_grad()
def test_videos_equal_the_oracle(family, budget):
    one, layer = specimen(family), first_layer(family)
    inputs, shape = video_inputs(family, rows=2)
    with pruned(one, family, keep_ratio=0.4, budget=budget) as report:
        words, logits = generate(one, inputs)
    grids, size = 1 if family == "kimi_k25" else FRAMES, shape[0] * shape[1]  # Kimi's frames are pooled into one
    for ids, sample in zip(inputs["input_ids"], report.samples, strict=True):
        assert sample.grids == [(0, *shape)] * grids
        expected = grids * int(0.4 * size) if budget == "grid" else int(0.4 * size * grids)
        assert sample.images == [(grids * size, expected)]
        assert (ids[sample.kept] == (IMAGE if family in GLM else VIDEO)).all()
        if budget == "grid":
            kept = [sum(cell[0] == grid for cell in sample.cells) for grid in range(grids)]
            assert kept == [int(0.4 * size)] * grids
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)


@VIDEOS
@torch.no_grad()
def test_a_forward_with_a_video_and_keep_ratio_one(family):
    one = specimen(family)
    inputs, (rows, columns) = video_inputs(family)
    plain = one.model(**inputs).logits
    with adaptprune.prune(one.model, "random", keep_ratio=1, layer=first_layer(family)) as report:
        assert torch.equal(one.model(**inputs).logits, plain)
    assert report.num_visual == (1 if family == "kimi_k25" else FRAMES) * rows * columns


@VIDEOS
@torch.no_grad()
def test_frames_are_read(family):
    """The frames above are no dummies: other ones give other answers."""
    inputs, _ = video_inputs(family)
    other = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"].flip(0 if family not in LLAVA else 1)}
    model = specimen(family).model
    assert (model(**inputs).logits[:, -1] - model(**other).logits[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "option"), [("internvl", {"crop_to_patches": False}), ("smolvlm", {"do_image_splitting": False})]
)
@torch.no_grad()
def test_a_video_as_pictures(family, option):
    """The model's own processor reads frames as pictures of one tile: each has a budget of its own."""
    one, layer = specimen(family), first_layer(family)
    text = " ".join(f"w{number} {one.placeholder}" for number in range(FRAMES)) + " w9 w8 w7"
    inputs = dict(one.processor(images=[frames(FRAMES)], text=[text], return_tensors="pt", **option))
    with pruned(one, family, keep_ratio=0.4) as report:
        words, logits = generate(one, inputs)
    (sample,) = report.samples
    assert len(sample.images) == len(sample.grids) == FRAMES
    assert all(kept == int(0.4 * count) for count, kept in sample.images)
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)
