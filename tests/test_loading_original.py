"""Checkpoints in the original LLaVA layout against that forward, restated from its parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import adaptprune
from tests.original_layout import Parts, original_logits, parts, write

PROMPT = "USER: <image>\nWhat colour is the cat? ASSISTANT:"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 255, (7, 9, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def logits(model, processor, prompt: str, images: list[Image.Image]) -> torch.Tensor:
    inputs = processor(images=images or None, text=prompt, return_tensors="pt").to(model.device)
    with torch.no_grad():
        return model(**inputs).logits[0].cpu()


def same(model, processor, made: Parts, *sizes: tuple[int, int]) -> None:
    images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    prompt = PROMPT if len(images) == 1 else "USER: " + "<image>\n" * len(images) + "What is this? ASSISTANT:"
    ours = logits(model, processor, prompt, images)
    theirs = original_logits(made, prompt, images)
    words = theirs.shape[-1]
    assert ours.shape[0] == theirs.shape[0]
    torch.testing.assert_close(ours[:, :words], theirs, atol=1e-4, rtol=1e-4)
    # the rows that were added for <image> and <pad> are never the answer
    assert (ours[:, words:] < ours[:, :words].max(dim=-1, keepdim=True).values).all()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("form", ["safetensors", "bin", "bin-shards"])
def test_llava_1_5(tmp_path, form, inside):
    made = parts("1.5")
    model, processor = adaptprune.load(write(made, tmp_path, form=form, inside=inside), device="cpu")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert not model.training
    for size in ((60, 60), (90, 40), (33, 120)):
        same(model, processor, made, size)
    same(model, processor, made, (50, 80), (80, 50))


@pytest.mark.parametrize(("mistral", "form", "inside"), [(False, "safetensors", True), (True, "bin", False)])
def test_llava_1_6(tmp_path, mistral, form, inside):
    made = parts("1.6", mistral=mistral)
    model, processor = adaptprune.load(write(made, tmp_path, form=form, inside=inside), device="cpu")
    assert type(model).__name__ == "LlavaNextForConditionalGeneration"
    assert model.config.text_config.model_type == ("mistral" if mistral else "llama")
    # square and small, wide, tall, and ratios at which rows or columns of padding are cut off again
    for size in ((60, 60), (40, 40), (150, 70), (70, 150), (200, 33), (56, 168), (101, 97), (130, 77), (77, 130)):
        same(model, processor, made, size)
    same(model, processor, made, (50, 80), (150, 50))


def test_a_linear_projector_and_plain_pictures(tmp_path):
    made = parts("1.5", linear=True, image_aspect_ratio="square")
    model, processor = adaptprune.load(write(made, tmp_path), device="cpu")
    same(model, processor, made, (90, 40))


def test_names_of_the_hub(tmp_path):
    """Under their published names, from a cache, as somebody without a network has them."""
    made = parts("1.5")
    folder = Path(write(made, tmp_path / "files", form="bin-shards"))
    config = json.loads((folder / "config.json").read_text())
    tower = "openai/clip-vit-large-patch14-336"
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": tower}))
    cache = tmp_path / "cache"
    for name, files in (("liuhaotian/llava-v1.5-7b", folder), (tower, folder.parent / "tower")):
        place = cache / f"models--{name.replace('/', '--')}"
        commit = "0" * 40
        shutil.copytree(files, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    model, processor = adaptprune.load(
        "liuhaotian/llava-v1.5-7b", cache_dir=str(cache), local_files_only=True, device="cpu"
    )
    same(model, processor, made, (60, 60))
    assert model.config.name_or_path == "liuhaotian/llava-v1.5-7b"
