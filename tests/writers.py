"""Tiny random models that can write any text, with the two kinds of tokenizers that language models have."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers import PreTrainedTokenizerFast as Fast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from tests.tiny import SIDE

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
CORPUS = [
    json.dumps({"name": "triangle", "colour": ["red", "blue"], "count": 3, "big": True, "none": None, "é": -1.5e3}),
    "USER: what is this? ASSISTANT: a blue triangle, and a red one. Größe 😀",
]


def byte_level() -> Fast:
    """Byte-level BPE, as Qwen and Llama 3 have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return _fast(backend)


def sentencepiece() -> Fast:
    """BPE with a letter for spaces and tokens for single bytes, as Llama 2 and Mistral have it."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(CORPUS * 5, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    words = SPECIAL + fallback + list(state["vocab"])
    merges = [tuple(merge) for merge in state["merges"]]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return _fast(backend)


def _fast(backend: Tokenizer) -> Fast:
    return Fast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def engine(tokenizer: Fast, name: str = "writer", seed: int = 0, padded: int = 24, **limits: object) -> Engine:
    """An engine with random weights; as in published models, its vocabulary is larger than its tokenizer's."""
    torch.manual_seed(seed)
    size = 14 * SIDE
    text = LlamaConfig(
        vocab_size=len(tokenizer) + padded, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
        pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=size, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 2
    images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return Engine(name, model, processor, EngineLimits(**limits))
