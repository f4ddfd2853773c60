"""Tiny randomly initialised models of every family, and the mask oracle that a pruned model has to equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Cache, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, PAD, VOCABULARY = 99, 0, 100
SIDE = 6  # 36 visual tokens per image
RUN = SIDE * SIDE
LAYERS = 5


def llava(
    attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, side: int = SIDE, **text: object
) -> LlavaForConditionalGeneration:
    """LLaVA-1.5 in small: CLIP tower with a 6x6 grid, a Llama of 5 layers with grouped heads."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=14 * side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,  # large enough that layers and tokens differ visibly
            pad_token_id=PAD,
            eos_token_id=1,
            **text,
        ),
        image_token_index=IMAGE,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # every test runs to its full length
    model.generation_config.pad_token_id = PAD
    return model


def prompt(images: int, text: int, seed: int = 0) -> Tensor:
    """Token ids: some words, then each image followed by words; `text` words in all."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, IMAGE, (text,), generator=generator)
    cuts = torch.linspace(0, text, images + 2).long().tolist()
    parts = [words[: cuts[1]]]
    for i in range(images):
        parts += [torch.full((RUN,), IMAGE), words[cuts[i + 1] : cuts[i + 2]]]
    return torch.cat(parts)


def batch(*prompts: Tensor, side: str = "left", seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Model inputs of several prompts, padded to the longest."""
    length = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), length), PAD), torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, tokens in enumerate(prompts):
        place = slice(length - len(tokens), length) if side == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if count := int((ids == IMAGE).sum()) // RUN:
        generator = torch.Generator().manual_seed(seed)
        inputs["pixel_values"] = torch.randn(count, 3, 14 * SIDE, 14 * SIDE, generator=generator).to(dtype)
    return inputs


CASES = {
    "one image": lambda: batch(prompt(1, 9)),
    "two images": lambda: batch(prompt(2, 10)),
    "same length, other image counts": lambda: batch(prompt(1, 9 + RUN), prompt(2, 9)),
    "ragged left": lambda: batch(prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4)),
    "ragged right": lambda: batch(prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4), side="right"),
}


@dataclass
class Hidden:
    """What the oracle hides: per sample, positions of the unpruned prompt that layers from `layer` on must not see."""

    layer: int
    dropped: list[list[int]]
    mask: Tensor  # (B, L) the prompt's attention mask
    merged: Callable[[Tensor], Tensor] = lambda states: states  # what layer `layer` is handed in place of its input


def dropped(report, inputs: dict[str, Tensor]) -> list[list[int]]:
    """Positions of the visual tokens that the report says were dropped."""
    visual = [set((row == IMAGE).nonzero()[:, 0].tolist()) for row in inputs["input_ids"]]
    return [sorted(tokens - set(sample.kept)) for tokens, sample in zip(visual, report.samples, strict=True)]


def cache_in(kwargs):
    """The KV cache among a layer's arguments, by whatever name."""
    return next((value for value in kwargs.values() if isinstance(value, Cache)), None)


@contextmanager
def oracle(model: nn.Module, hidden: Hidden) -> Iterator[None]:
    """The unpruned model with a 4-D mask that hides tokens from layer K on. Shares no code with the package."""

    def rewrite(number: int, module: nn.Module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        rows, queries = states.shape[:2]
        cache = cache_in(kwargs)
        past = cache.layers[0].keys.shape[-2] - queries if number and cache is not None else seen(cache)
        total = past + queries
        visible = torch.ones(rows, total, dtype=torch.bool)
        copies = rows // len(hidden.dropped)  # beams
        for row in range(rows):
            length = hidden.mask.shape[1]
            visible[row, : min(length, total)] = hidden.mask[row // copies, :total].bool()
            visible[row, hidden.dropped[row // copies]] = False
        causal = torch.arange(total)[None, :] <= torch.arange(past, total)[:, None]
        allowed = causal[None, None] & visible[:, None, None, :]
        if model.config._attn_implementation == "eager" or (
            kwargs.get("attention_mask") is not None and kwargs["attention_mask"].is_floating_point()
        ):
            allowed = torch.zeros(allowed.shape, dtype=states.dtype).masked_fill(
                ~allowed, torch.finfo(states.dtype).min
            )
        if number == hidden.layer and past == 0:
            states = hidden.merged(states)
        return (states, *args[1:]), {**kwargs, "attention_mask": allowed}

    def seen(cache) -> int:
        return cache.get_seq_length() if cache is not None else 0

    layers = model.model.language_model.layers
    handles = []
    for number, layer in enumerate(layers):
        if number >= hidden.layer:
            handles.append(layer.register_forward_pre_hook(partial(rewrite, number), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
