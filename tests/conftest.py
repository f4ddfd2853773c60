"""Fixtures that several files share."""

from __future__ import annotations

import os
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a missing model then fails at once
os.environ["ADAPTPRUNE_CACHE"] = tempfile.mkdtemp()  # what the self-check remembers is not the user's own

import pytest
import torch
from hypothesis import settings
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny import IMAGE, SIDE, VOCABULARY, llava

settings.register_profile("unhurried", settings(), deadline=None)  # how long an example takes says how busy we are
settings.load_profile("unhurried")
torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way
# a shell lets what it starts in the background ignore Ctrl-C, and so would the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = ["<pad>", "</s>", "<unk>", *["user", "assistant", ":", "?", "what", "is", "this", "a", "b", "c", "d", "e", "f"]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """The tiny LLaVA as an ordinary checkpoint folder, with a word tokenizer and a real image processor."""
    words = WORDS + [f"w{i}" for i in range(IMAGE - len(WORDS))] + ["<image>"]
    assert len(words) == VOCABULARY
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",  # as many published checkpoints have it
        extra_special_tokens={"image_token": "<image>"},
    )
    size = 14 * SIDE
    images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    folder = tmp_path_factory.mktemp("tiny-llava")
    llava().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path) -> str:
    """A PNG with a bright square in its lower right."""
    image = Image.new("RGB", (120, 90), (40, 60, 80))
    image.paste((250, 200, 30), (70, 50, 100, 80))
    path = tmp_path / "picture.png"
    image.save(path)
    return str(path)
