"""Batches of decoders that are not plain: several axes of positions (M-RoPE), sliding windows, and what is refused."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import adaptprune
from adaptprune.engines.batch.batch import Batch
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Job
from adaptprune.engines.batch.slots import Slots
from adaptprune.engines.protocol import Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.families import FAMILIES, Family, Layout
from adaptprune.families.base import raster
from adaptprune.methods import make_pruner
from adaptprune.prompts import Prompter, Turn
from adaptprune.testing.zoo import SPECIMENS, specimen
from tests.families import FAMILY, suiting
from tests.tiny import batch, prompt

TOKENS = 12


class NoTokenizer:
    """Text does not matter here."""

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


def written(model, requests) -> list[list[int]]:
    """Token ids that a batch writes, with requests joining at random steps."""
    rng, running = random.Random(0), Batch(model, None, NoTokenizer())
    waiting = [
        Job(Sampling(length), pruner, lambda event: None, 1e9, inputs=inputs, max_tokens=length)
        for inputs, pruner, length in requests
    ]
    found: dict[int, list[int]] = {}
    left = list(waiting)
    with torch.inference_mode():
        while left or running.rows:
            if left and (rng.random() < 0.5 or not running.rows):
                list(running.read(left.pop(0)))
            elif running.rows:
                list(running.step())
            for row in running.rows:
                found[waiting.index(row.job)] = list(row.tokens)
            running.drop(lambda row: row.ended)
    running.close()
    return [found[index] for index in range(len(requests))]


@torch.inference_mode()
def alone(model, inputs, pruner, length) -> list[int]:
    """One forward per token, all of them under `prune`, with a 2-D mask; positions as generate() extends them."""
    cache, mask, tokens = DynamicCache(), inputs["attention_mask"], []
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    with adaptprune.prune(model, pruner) if pruner else nullcontext() as report:
        output = model(**inputs, position_ids=positions, past_key_values=cache, use_cache=True)
        assert report is None or 0 < report.num_kept < report.num_visual
        while len(tokens) < length:
            tokens.append(int(output.logits[0, -1].argmax()))
            mask, positions = torch.cat([mask, mask[:, -1:]], dim=1), positions[..., -1:] + 1
            output = model(
                input_ids=torch.tensor([tokens[-1:]]),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
    return tokens


def check(model, requests) -> None:
    model.generation_config.eos_token_id = None
    expected = [alone(model, *one) for one in requests]
    assert written(model, requests) == expected
    assert len({tuple(one) for one in expected}) > len(expected) // 2


class QwenForTest(Family):
    """Enough of a family to find the tokens of one image per prompt."""

    model_types = ("qwen2_5_vl",)

    def layout(self, config, inputs):
        if inputs.get("pixel_values") is None:
            return None
        found = []
        for row, grid in zip(inputs["input_ids"], inputs["image_grid_thw"], strict=True):
            positions = (row == config.image_token_id).nonzero()[:, 0]
            coords = raster(1, int(grid[1]) // 2, int(grid[2]) // 2, row.device)
            found.append(Layout(positions, coords, coords[:, 0]))
        return found


def qwen() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
                       "fullatt_block_indexes": [1]},
        text_config={"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
                     "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1000.0}},
        image_token_id=99, video_token_id=98, vision_start_token_id=97, vision_end_token_id=96,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration._from_config(config).eval()


def qwen_inputs(seed: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, 90, (3 + seed,), generator=generator)
    if not rows:
        return {"input_ids": words[None], "attention_mask": torch.ones_like(words)[None]}
    image = torch.tensor([97, *[99] * (rows * columns), 96])
    ids = torch.cat([words[:2], image, words[2:]])[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 99).long(),
        "pixel_values": torch.randn(4 * rows * columns, 3 * 2 * 14 * 14, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]]),
    }


def test_several_axes_of_positions(monkeypatch):
    """After an image the next position is not the number of tokens before it; every request has its own offset."""
    if "qwen2_5_vl" not in FAMILIES.names():
        monkeypatch.setitem(FAMILIES._targets, "qwen2_5_vl", QwenForTest)
    shapes = [(4, 6), (0, 0), (2, 2), (7, 3), (4, 6), (1, 9)]
    methods = [None, None, "fastv:keep_ratio=0.5", "random:keep_ratio=0.3,layer=1", "adaptprune:keep_ratio=0.25", None]
    requests = [
        (qwen_inputs(seed, *shape), make_pruner(method) if method else None, TOKENS + seed)
        for seed, (shape, method) in enumerate(zip(shapes, methods, strict=True))
    ]
    check(qwen(), requests)


def mistral(window: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                                       image_size=84, patch_size=14),
        text_config=MistralConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                                  num_attention_heads=4, num_key_value_heads=2, sliding_window=window,
                                  initializer_range=0.2),
        image_token_index=99,
    )  # fmt: skip
    return LlavaForConditionalGeneration._from_config(config).eval()


def test_sliding_windows():
    """Prompts and answers shorter and longer than the window, without pruning beyond it."""
    requests = [
        (batch(prompt(0, 5, 1)), None, 40),
        (batch(prompt(1, 30, 2)), None, 20),
        (batch(prompt(0, 60, 3)), None, 9),
        (batch(prompt(0, 3, 4)), None, 16),
        (batch(prompt(0, 20, 5)), None, 3),
    ]
    check(mistral(24), requests)
    pruned = [(batch(prompt(1, 9, seed)), make_pruner("fastv:keep_ratio=0.5"), 12) for seed in range(3)]
    check(mistral(80), [*pruned, (batch(prompt(1, 70, 9)), None, 30)])


def test_decoders_that_cannot_be_batched():
    config = mistral(24).config.get_text_config()
    config.layer_types = ["full_attention", "hybrid"] * 2
    with pytest.raises(AdaptPruneError, match="cannot be batched with others"):
        Slots(config, {})
    model = mistral(24)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(AdaptPruneError, match="flex_attention cannot be batched"):
        Batch(model, None, NoTokenizer())


@FAMILY
@torch.inference_mode()
def test_every_family_is_served(family):
    """From a picture and words to tokens, as the server does it: what `generate()` writes under the same pruning."""
    one = SPECIMENS[family]("sdpa")
    model = one.model
    inputs = Prompter(one.processor, model).inputs([Turn("user", [*one.pictures(1), "w3 w4 w5"])])
    pruner = make_pruner(**suiting(family), keep_ratio=0.3)
    with adaptprune.prune(model, pruner) as report:
        expected = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, -TOKENS:].tolist()
    assert 0 < report.num_kept < report.num_visual
    plain = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0, -TOKENS:].tolist()
    assert written(model, [(inputs, None, TOKENS)]) == [plain]
    requests = [(inputs, pruner, TOKENS), (inputs, None, TOKENS), (inputs, pruner, TOKENS // 2)]
    assert written(model, requests) == [expected, plain, expected[: TOKENS // 2]]


def test_what_does_not_suit_a_model_is_refused_before_anything_is_read():
    """A layer outside of it, one that is too early or too late for it, a rule that lacks its cue."""
    wrong = {"llava": ("fastv:layer=99", "outside the model"), "qwen3_vl": ("random:layer=0", "too early"),
             "gemma4": ("random:layer=5", "too late"), "qwen3_5": ("fastv:layer=1", "attention")}  # fmt: skip
    for family, (method, said) in wrong.items():
        if family not in SPECIMENS:
            continue  # not in this release
        one = specimen(family)
        with pytest.raises(AdaptPruneError, match=said):
            Engine(family, one.model, one.processor).check(Pruning(method))
        Engine(family, one.model, one.processor).check(Pruning("none"))
