"""Processors of every layout, read from a folder with and without torchvision."""

from __future__ import annotations

import json

import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

from adaptprune import AdaptPruneError
from adaptprune.models.processors import read_processor

QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
IMAGE, BOTH = {"image_token": "<image>"}, {"image_token": "<image>", "video_token": "<video>"}
LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PIXELS = {"size": {"shortest_edge": 56 * 56, "longest_edge": 4 * 56 * 56}}
TILES = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
#: model type: image processor, its settings, processor's settings, named tokens, placeholder, other tokens
CASES = {
    "qwen2_vl": ("Qwen2VL", PIXELS, {}, QWEN, "<|image_pad|>", ["<|vision_start|>", "<|vision_end|>"]),
    "qwen2_5_vl": ("Qwen2VL", PIXELS, {}, QWEN, "<|image_pad|>", ["<|vision_start|>", "<|vision_end|>"]),
    "qwen3_vl": (
        "Qwen2VL",
        {**PIXELS, "patch_size": 16},
        {},
        {**QWEN, "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"},
        "<|image_pad|>",
        [],
    ),
    "llava": ("CLIP", {}, LLAVA, IMAGE, "<image>", []),
    "llava_next": ("LlavaNext", {}, LLAVA, IMAGE, "<image>", []),
    "llava_onevision": (
        "LlavaOnevision",
        {},
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
        BOTH,
        "<image>",
        [],
    ),
    "llava_next_video": ("LlavaNext", {}, LLAVA, BOTH, "<image>", []),
    "video_llava": ("VideoLlava", {}, LLAVA, BOTH, "<image>", []),
    "internvl": (
        "GotOcr2",
        {},
        {"image_seq_length": 256},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "<IMG_CONTEXT>",
        [],
    ),
    "gemma3": (
        "Gemma3",
        {},
        {},
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        "<start_of_image>",
        [],
    ),
    "idefics3": ("Idefics3", {}, {"image_seq_len": 64}, {}, "<image>", ["<image>", *TILES]),
    "paligemma": ("Siglip", {"image_seq_length": 16}, {}, IMAGE, "<image>", []),
    "mistral3": ("Pixtral", {}, {}, {}, "[IMG]", ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
}


def write(folder, model_type: str):
    """A checkpoint folder without weights; its config and the placeholder of an image."""
    images, settings, more, named, placeholder, others = CASES[model_type]
    words = ["<pad>", "</s>", "<unk>", "<s>", "what", "is", "this", *named.values(), *others]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=others,
        extra_special_tokens=named,
    ).save_pretrained(folder)
    described = {"image_processor_type": f"{images}ImageProcessor", **settings}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    (folder / "processor_config.json").write_text(json.dumps(more))
    config = transformers.AutoConfig.for_model(model_type)
    config.save_pretrained(folder)
    return config, placeholder


@pytest.mark.parametrize("model_type", [name for name in CASES if name != "mistral3"])
def test_images_are_read_with_or_without_torchvision(tmp_path, model_type):
    config, placeholder = write(tmp_path, model_type)
    processor = read_processor(str(tmp_path), config, {})
    assert type(processor).__module__.startswith("transformers.models.")
    batch = processor(images=[Image.new("RGB", (100, 60))], text=[f"what {placeholder} is this"], return_tensors="pt")
    assert any(name.startswith("pixel_values") for name in batch)
    assert batch["input_ids"].shape[1] > 8  # the placeholder was expanded
    if not is_torchvision_available() and "video_processor" in type(processor).get_attributes():
        with pytest.raises(AdaptPruneError, match="reading a video needs torchvision.*pip install torchvision"):
            processor(videos=[[Image.new("RGB", (100, 60))] * 4], text=["what " + CASES[model_type][3]["video_token"]])


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed: nothing is missing")
def test_a_processor_that_cannot_do_without_torchvision_says_so(tmp_path):
    config, _ = write(tmp_path, "mistral3")
    with pytest.raises(AdaptPruneError, match="'mistral3' needs torchvision.*pip install torchvision"):
        read_processor(str(tmp_path), config, {})
