"""Conversations over a kept cache in odd orders: choosing anew, eviction, windows, prompts that end in a picture."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from transformers import DynamicCache

import adaptprune
from adaptprune import AdaptPruneError, FastV, Random
from adaptprune.hooks.seams.parts import takes_ready
from adaptprune.pruner import budget
from adaptprune.testing.oracle import hiding
from adaptprune.testing.specimen import IMAGE, build, clip, text
from adaptprune.testing.zoo import SPECIMENS
from adaptprune.viz import pictures_seen
from tests.families import TOLERANCE, gone, specimen

WORDS = torch.tensor([[70, 71, 72, 73]])


def cache_of(one) -> DynamicCache:
    return DynamicCache(config=one.model.config.get_text_config())


def sliding(attention: str = "sdpa"):
    """LLaVA on a Mistral whose layers all slide, with prompts longer than the window."""
    one = SPECIMENS["llava"](attention)
    config = hf.LlavaConfig(
        vision_config=clip(), text_config=text(hf.MistralConfig, sliding_window=24), image_token_index=IMAGE
    )
    one.model = build(hf.LlavaForConditionalGeneration, config, attention)
    return one


@pytest.mark.parametrize("method", ["random", "fastv", "adaptprune"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_prompt_that_ends_in_a_picture_keeps_the_place_it_is_answered_from(method, side):
    one = specimen("llava")
    rows = [torch.tensor([60, 61, 62, *[IMAGE] * 16]), torch.tensor([63, *[IMAGE] * 16, 64])]
    width = max(map(len, rows))
    pad = [(width - len(row), 0) if side == "left" else (0, width - len(row)) for row in rows]
    inputs = {
        "input_ids": torch.stack([torch.nn.functional.pad(r, p) for r, p in zip(rows, pad, strict=True)]),
        "attention_mask": torch.stack(
            [torch.nn.functional.pad(torch.ones_like(r), p) for r, p in zip(rows, pad, strict=True)]
        ),
        "pixel_values": torch.rand(2, 3, 28, 28),
    }
    with adaptprune.prune(one.model, method, keep_ratio=0.25) as report:
        logits = one.model(**inputs).logits
    assert 18 in report.samples[0].kept  # above the budget if the method did not choose it
    assert 4 <= len(report.samples[0].kept) <= 5
    with hiding(one.model, 2, gone(one, inputs, report)):
        full = one.model(**inputs).logits
    torch.testing.assert_close(logits[0, -1], full[0, -1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@torch.no_grad()
def test_choosing_anew_with_every_kernel(attention):
    one = SPECIMENS["llava"](attention)
    inputs, cache = one.inputs(1), cache_of(one)
    with torch.compiler.set_stance("force_eager"):
        with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, reselect=True):
            one.model(**inputs, past_key_values=cache)
            later = one.model(input_ids=WORDS, past_key_values=cache).logits
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], WORDS], 1)}
        del whole["attention_mask"]
        with adaptprune.prune(one.model, "fastv", keep_ratio=0.3):
            fresh = one.model(**whole).logits
    assert later.shape[1] == 4  # what was asked, not the whole conversation
    torch.testing.assert_close(later, fresh[:, -4:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_choosing_anew_behind_a_sliding_layer(layer, attention):
    one = sliding(attention)
    inputs, cache = one.inputs(1, words=20), cache_of(one)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=layer, reselect=True) as report:
        one.model(**inputs, past_key_values=cache)
        for turn in range(3):
            later = one.model(input_ids=WORDS + turn, past_key_values=cache).logits
        chosen = report.samples[0].kept
    turns = [WORDS + turn for turn in range(3)]
    whole = torch.cat([inputs["input_ids"], *turns], 1)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=layer) as report:
        fresh = one.model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits
    assert chosen == report.samples[0].kept
    torch.testing.assert_close(later[:, -1], fresh[:, -1], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_choosing_anew_with_a_new_picture_and_after_a_crop():
    one = specimen("llava")
    first, second, cache = one.inputs(1), one.inputs(1, seed=5), cache_of(one)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, reselect=True) as report:
        one.model(**first, past_key_values=cache)
        one.model(input_ids=WORDS, past_key_values=cache)
        cache.crop(-2)
        later = one.model(
            input_ids=second["input_ids"], pixel_values=second["pixel_values"], past_key_values=cache
        ).logits
        images, kept = report.samples[0].images, report.samples[0].kept
    whole = torch.cat([first["input_ids"], WORDS[:, :2], second["input_ids"]], 1)
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3) as report:
        fresh = one.model(input_ids=whole, pixel_values=pixels).logits
    assert images == report.samples[0].images == [(16, 4), (16, 4)]
    assert kept == report.samples[0].kept
    torch.testing.assert_close(later[:, -1], fresh[:, -1], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_labels_and_indices_of_a_later_turn_count_its_own_tokens():
    one = specimen("llava")
    inputs, cache = one.inputs(1), cache_of(one)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, reselect=True):
        one.model(**inputs, past_key_values=cache)
        plain = one.model(input_ids=WORDS, past_key_values=copy.deepcopy(cache)).logits
        third = one.model(
            input_ids=WORDS, past_key_values=copy.deepcopy(cache), logits_to_keep=torch.tensor([2])
        ).logits
        out = one.model(input_ids=WORDS, past_key_values=cache, labels=WORDS)
    torch.testing.assert_close(third[:, 0], plain[:, 2])
    torch.testing.assert_close(out.logits, plain)
    expected = torch.nn.functional.cross_entropy(plain[0, :-1], WORDS[0, 1:])
    torch.testing.assert_close(out.loss, expected)


@torch.no_grad()
def test_caches_of_another_making_are_refused_by_name():
    one = specimen("llava")
    inputs = one.inputs(1)

    def filled(**options):
        cache = cache_of(one)
        with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, **options):
            one.model(**inputs, past_key_values=cache)
        return cache

    def go_on(cache, **options):
        with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, **options):
            one.model(input_ids=WORDS, past_key_values=cache)

    with pytest.raises(AdaptPruneError, match="filled without reselect=True"):
        go_on(filled(), reselect=True)
    with pytest.raises(AdaptPruneError, match="use evict_below=True again"):
        go_on(filled(evict_below=True))
    go_on(filled(), evict_below=True)  # the other way round is sound
    with pytest.raises(AdaptPruneError, match="filled under pruning, and the model is not pruned now"):
        one.model(input_ids=WORDS, past_key_values=filled())
    wide = torch.ones(1, 1, 4, inputs["input_ids"].shape[1] + 4, dtype=torch.bool)
    cache = filled(reselect=True)
    with (
        adaptprune.prune(one.model, "fastv", keep_ratio=0.3, reselect=True),
        pytest.raises(AdaptPruneError, match="pass a 2-D attention_mask"),
    ):
        one.model(input_ids=WORDS, attention_mask=wide, past_key_values=cache)


def test_options_that_are_not_yes_or_no():
    model = specimen("llava").model
    with pytest.raises(AdaptPruneError, match="reselect='no' is not allowed: it is True or False"):
        adaptprune.prune(model, "random", reselect="no")
    with pytest.raises(AdaptPruneError, match=r"unknown budget=\['image'\]"):
        adaptprune.prune(model, "random", budget=["image"])


@dataclass(frozen=True)
class Steps(Random):
    def stages(self, num_layers):
        return (1, 3)

    def counts(self, size, num_layers):
        return {1: budget(0.06, size), 3: budget(0.03, size)}


@torch.no_grad()
def test_two_stages_that_round_to_the_same_count():
    one = specimen("llava")
    with adaptprune.prune(one.model, Steps()) as report:
        one.model(**one.inputs(1))
    assert report.num_kept == 1


@torch.no_grad()
def test_one_prompt_is_counted_once():
    """Guesses that a draft adds are no prompts; a turn of one word is one, and chooses anew."""
    one = specimen("llava")
    inputs = one.inputs(1)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, reselect=True) as report:
        turn = one.model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
        assert report.prompts == 1
        assert report.num_kept == 4
        out = one.model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[77]])], 1)
        # the answer's last word has not been read yet, so the turn is two tokens
        one.model.generate(input_ids=ids, past_key_values=out.past_key_values, max_new_tokens=2, do_sample=False)
        assert report.prompts == 3
        assert report.num_visual == 16
    assert turn.shape[1] == inputs["input_ids"].shape[1] + 8


@pytest.mark.parametrize("evict_below", [False, True])
@torch.no_grad()
def test_sliding_layers_hold_exactly_their_window(evict_below):
    one = sliding()
    inputs = one.inputs(2, words=30)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.5, layer=2, evict_below=evict_below) as report:
        out = one.model.generate(
            **inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert report.kv_lengths == [23] * 6
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [23] * 6
    with hiding(one.model, 2, gone(one, inputs, report), decode_from=0 if evict_below else None):
        full = one.model.generate(
            **inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(full.logits), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_pruned_sliding_cache_is_cropped():
    """Below the window and beyond it: what is read again gives what was read the first time."""
    for words in (2, 30):
        one = sliding()
        inputs, cache = one.inputs(1, words=words), cache_of(one)
        cache.activate_past_recording()
        length = inputs["input_ids"].shape[1]
        with adaptprune.prune(one.model, "fastv", keep_ratio=0.25):
            one.model(**inputs, past_key_values=cache)
            cache.crop(0)
            plain = one.model(input_ids=WORDS, past_key_values=copy.deepcopy(cache)).logits
            one.model(input_ids=WORDS[:, :3] + 5, past_key_values=cache)  # guesses that turn out wrong
            cache.crop(-3)
            assert [layer.get_seq_length() for layer in cache.layers] == [length] * 6
            again = one.model(input_ids=WORDS, past_key_values=cache).logits
        torch.testing.assert_close(again, plain, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_attention_cue_has_the_soft_cap():
    """Gemma 2 caps its scores: what FastV ranks by is what eager attention puts out."""
    one = specimen("paligemma", "eager")
    inputs, seen = one.inputs(1), []

    class Watching(FastV):
        def score(self, tokens):
            seen.append(tokens.attention)
            return super().score(tokens)

    with adaptprune.prune(one.model, Watching(layer=2)):
        one.model(**inputs)
    real = one.model(**inputs, output_attentions=True).attentions[1][0, :, -1]
    image = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    torch.testing.assert_close(seen[0], real[:, image], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "seen"), [("llava_pixtral", False), ("llava", True), ("internvl", True), ("qwen2_vl", False)]
)
@torch.no_grad()
def test_pictures_are_drawn_as_seen_or_whole(family, seen):
    """A grid is drawn on the pixels it stands for, if the processor lays them out so, one picture per grid."""
    one = specimen(family)
    inputs = one.inputs(2)
    with adaptprune.prune(one.model, "random") as report:
        one.model(**inputs)
    found = pictures_seen(one.processor, inputs, report.samples[0])
    assert (found is not None) == seen
    if found is not None:
        assert len(found) == len(report.samples[0].grids) >= 2


@torch.no_grad()
def test_features_from_before_the_pruning_do_not_say_where_they_lie():
    one = specimen("llava_next")
    inputs = one.inputs(1)
    features = one.model.model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_sizes"))
    says = "encoded before the model was pruned.*image_sizes" if takes_ready(one.model) else "does not take it"
    with adaptprune.prune(one.model, "random"), pytest.raises(AdaptPruneError, match=says):
        one.model(**inputs, mm_encoder_outputs={"image": features})
