"""The corners of pruning: cropped, reset and reordered caches, odd masks and towers, rules that break their promise."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from transformers import CLIPVisionConfig, DynamicCache, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import adaptprune
from adaptprune import AdaptPruneError, FastV, Random
from adaptprune.pruner import budget
from adaptprune.testing.oracle import hiding
from tests.tiny import CASES, IMAGE, LAYERS, RUN, SIDE, Hidden, batch, dropped, llava, oracle, prompt

TOLERANCE = 1e-4


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layer", [1, 3])
def test_the_attention_cue_is_the_models_own(case, layer):
    """What FastV ranks by under SDPA is what eager attention puts out."""
    seen = []

    class Watching(FastV):
        def score(self, tokens):
            seen.append(tokens.attention)
            return super().score(tokens)

    inputs = CASES[case]()
    model = llava("sdpa")
    with adaptprune.prune(model, Watching(layer=layer)):
        model(**inputs)
    real = llava("eager")(**inputs, output_attentions=True).attentions[layer - 1]
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        last = int(mask.nonzero()[-1])
        for image in (ids == IMAGE).nonzero()[:, 0].view(-1, RUN):
            torch.testing.assert_close(seen.pop(0), real[row, :, last, image], atol=1e-5, rtol=0)
    assert not seen


@dataclass(frozen=True)
class TwoStages(FastV):
    """Half before layer 1, a sixth of the original before layer 3, with every cue."""

    layer: int = 1

    @property
    def needs(self):
        return frozenset({"attention", "keys"})

    def stages(self, num_layers):
        return (1, 3)

    def counts(self, size, num_layers):
        return {1: budget(0.5, size), 3: budget(1 / 6, size)}


class FirstStage(TwoStages):
    def stages(self, num_layers):
        return (1,)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_two_stages_equal_the_oracle(case):
    model, inputs = llava(), CASES[case]()
    position = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    stages = []
    for pruner in (FirstStage(), TwoStages()):
        with adaptprune.prune(model, pruner) as report:
            out = model(**inputs, position_ids=position)
            stages.append(dropped(report, inputs))
            token = torch.full((len(position), 1), 7)
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            place = inputs["attention_mask"].sum(dim=1, keepdim=True)
            step = model(token, attention_mask=mask, position_ids=place, past_key_values=out.past_key_values)
    assert all(set(a) <= set(b) for a, b in zip(*stages, strict=True))
    mask = inputs["attention_mask"]
    with oracle(model, Hidden(1, stages[0], mask)), oracle(model, Hidden(3, stages[1], mask)):
        full = model(**inputs, position_ids=position)
        full_step = model(token, attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1), position_ids=place,
                          past_key_values=full.past_key_values)  # fmt: skip
    rows = mask[:, -1] > 0  # the others end in padding
    torch.testing.assert_close(out.logits[rows, -1], full.logits[rows, -1], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(step.logits, full_step.logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padding_on_the_left_leaves_with_the_visual_tokens():
    """A batch of an image and a text costs what its longest row of kept tokens needs."""
    model = llava()
    with adaptprune.prune(model, "random", keep_ratio=0.1) as report:
        model(**batch(prompt(1, 9), prompt(0, 12)))
        assert report.kv_lengths == [9 + RUN] * 2 + [12] * 3
        model(**batch(prompt(1, 9), prompt(2, 14)))
        assert report.kv_lengths == [14 + 2 * RUN] * 2 + [14 + 2 * 3] * 3


@torch.no_grad()
@pytest.mark.parametrize("tower", ["siglip full", "clip full", "two layers"])
def test_other_towers(tower):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 14 * SIDE, "patch_size": 14}  # fmt: skip
    vision = SiglipVisionConfig(**size) if "siglip" in tower else CLIPVisionConfig(**size)
    config = LlavaConfig(
        vision_config=vision,
        text_config=llava().config.text_config,
        image_token_index=IMAGE,
        vision_feature_layer=[-2, -1] if tower == "two layers" else -2,
        vision_feature_select_strategy="full" if "full" in tower else "default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    inputs = batch(prompt(1, 9))
    if tower == "clip full":  # its class token comes first, and is never pruned
        inputs["input_ids"] = torch.cat(
            [inputs["input_ids"][:, :5], torch.tensor([[IMAGE]]), inputs["input_ids"][:, 5:]], 1
        )
        del inputs["attention_mask"]
    with adaptprune.prune(model, "fastv", keep_ratio=0.25) as report:
        model(**inputs)
    assert report.num_visual == RUN
    assert report.num_kept == RUN // 4
    length = inputs["input_ids"].shape[1]
    assert report.kv_lengths == [length] * 2 + [length - RUN + RUN // 4] * 3
    if tower == "siglip full":
        config.vision_feature_select_strategy = "default"
        with pytest.raises(AdaptPruneError, match="has no class token.*set it to 'full'"):
            adaptprune.prune(model, "fastv")


@torch.no_grad()
@pytest.mark.parametrize("spec", ["adaptprune", "random:layer=0"])
def test_generate_over_two_turns(spec):
    """generate() is handed the whole conversation and the cache of the first turn."""
    model, first = llava(), batch(prompt(1, 9))
    second = batch(prompt(1, 7, 8), seed=2)
    with adaptprune.prune(model, spec, keep_ratio=0.25) as report:
        turn = model.generate(**first, max_new_tokens=4, return_dict_in_generate=True)
        gone = dropped(report, first)[0]
        whole = torch.cat([turn.sequences, second["input_ids"]], dim=1)
        answer = model.generate(input_ids=whole, attention_mask=torch.ones_like(whole), max_new_tokens=5,
                                pixel_values=second["pixel_values"], past_key_values=turn.past_key_values)  # fmt: skip
        start = turn.sequences.shape[1]
        visual = (second["input_ids"][0] == IMAGE).nonzero()[:, 0] + start
        gone += sorted(set(visual.tolist()) - set(report.samples[0].kept))
        assert len(report.samples[0].kept) == 9
    pixels = torch.cat([first["pixel_values"], second["pixel_values"]])
    with oracle(model, Hidden(adaptprune.make_pruner(spec).layer, [gone], torch.ones_like(whole))):
        full = model.generate(
            input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=pixels, max_new_tokens=5
        )
    assert answer.tolist() == full.tolist()


@torch.no_grad()
def test_at_layer_0_a_cache_is_continued_under_a_mask_of_all_positions():
    model, inputs = llava(), batch(prompt(1, 9))
    with adaptprune.prune(model, "random", layer=0):
        one, two = (model(**inputs).past_key_values for _ in range(2))
        assert one.get_seq_length() == inputs["input_ids"].shape[1]
        wide = torch.ones(1, 1, 1, inputs["input_ids"].shape[1] + 1, dtype=torch.bool)
        token = torch.tensor([[3]])
        masked = model(token, attention_mask=wide, past_key_values=one).logits
        torch.testing.assert_close(masked, model(token, past_key_values=two).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("spec", ["fastv", "random:layer=0"])
def test_a_cache_that_was_reset_is_a_new_one(spec):
    model, inputs, text = llava(), batch(prompt(1, 9)), batch(prompt(0, 9))
    token = torch.tensor([[5]])
    with adaptprune.prune(model, spec):
        cache = DynamicCache(config=model.config.text_config)
        model(**inputs, past_key_values=cache)
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("before 5.20, a cache of transformers that is reset goes on counting what it held")
        model(**text, past_key_values=cache)
        again = model(token, past_key_values=cache).logits
    fresh = model(**text).past_key_values
    torch.testing.assert_close(again, model(token, past_key_values=fresh).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", ["one image", "ragged left"])
def test_cropping_takes_back_text_but_not_images(case):
    model, inputs = llava(), CASES[case]()
    rows = len(inputs["input_ids"])
    words = torch.randint(2, 90, (rows, 4), generator=torch.Generator().manual_seed(3))
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
    with adaptprune.prune(model, "fastv", keep_ratio=0.25):
        plain = model(**inputs).past_key_values
        cropped = copy.deepcopy(plain)
        cropped.crop(-2)  # the prompt's last two words
        cropped = model(
            torch.cat([inputs["input_ids"][:, -2:], words], 1), attention_mask=mask, past_key_values=cropped
        )
        whole = model(words, attention_mask=mask, past_key_values=plain)
        torch.testing.assert_close(cropped.logits[:, -4:], whole.logits, atol=TOLERANCE, rtol=0)
        cache = model(**inputs).past_key_values
        cache.crop(-(inputs["input_ids"].shape[1] // 2))
        with pytest.raises(AdaptPruneError, match="cropped into a part that was pruned"):
            model(words, past_key_values=cache)


@torch.no_grad()
def test_prompt_lookup_decoding_gives_the_greedy_answer():
    model, inputs = llava(), batch(prompt(1, 15))
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25):
        greedy = model.generate(**inputs, max_new_tokens=12)
        assert torch.equal(model.generate(**inputs, max_new_tokens=12, prompt_lookup_num_tokens=3), greedy)


@torch.no_grad()
def test_masks_and_arguments_of_every_form():
    model, inputs = llava(), batch(prompt(1, 9))
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with adaptprune.prune(model, "fastv") as report:
        plain = model(**inputs).logits
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, plain)
        torch.testing.assert_close(model(ids, pixels, causal).logits, plain, atol=TOLERANCE, rtol=0)
        hidden = model.model(ids, pixels)[0]  # positional, without a head
        assert torch.equal(model.lm_head(hidden), plain)
        assert report.num_kept == RUN // 2
        assert report.prompts == 4


@torch.no_grad()
def test_the_report_follows_every_prompt():
    model, inputs = llava(), batch(prompt(1, 9))
    with adaptprune.prune(model, "fastv") as report:
        cache = model(**inputs).past_key_values
        assert report.num_kept == RUN // 2
        model(batch(prompt(0, 6))["input_ids"], past_key_values=cache)
        assert (report.prompts, report.num_visual, report.samples[0].kept) == (2, 0, [])
        assert report.kv_lengths[0] == inputs["input_ids"].shape[1] + 6


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
def test_kept_tokens_leave_a_sliding_window_by_their_positions(attention, layer):
    """Every layer slides, and the prompt is longer than the window: the cache holds what positions cannot reach."""
    from transformers import MistralConfig

    torch.manual_seed(0)
    text = MistralConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS,
                         num_attention_heads=4, num_key_value_heads=2, sliding_window=50,
                         initializer_range=0.2)  # fmt: skip
    config = LlavaConfig(vision_config=llava().config.vision_config, text_config=text, image_token_index=IMAGE)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    inputs = batch(prompt(2, 14), prompt(1, 9))
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with adaptprune.prune(model, "random", keep_ratio=0.5, layer=layer) as report:
        pruned = model.generate(**inputs, **options)
    with hiding(model, layer, dropped(report, inputs)):
        full = model.generate(**inputs, **options)
    torch.testing.assert_close(torch.stack(pruned.logits), torch.stack(full.logits), atol=TOLERANCE, rtol=0)
    assert torch.equal(pruned.sequences, full.sequences)


@pytest.mark.parametrize(
    "returned",
    [[3, 3, 4], [4, 3], list(range(19)), [], [36], [-1, 2], [[1, 2]], [0.5]],
    ids=["duplicates", "descending", "too many", "none", "outside", "negative", "two dimensions", "not integers"],
)
@torch.no_grad()
def test_a_rule_that_breaks_its_promise_is_named(returned):
    class Broken(Random):
        def select(self, tokens, num_keep):
            return torch.tensor(returned) if returned else torch.empty(0, dtype=torch.int64)

    model = llava()
    with adaptprune.prune(model, Broken()), pytest.raises(AdaptPruneError, match="method 'random' returned"):
        model(**batch(prompt(1, 9)))


@torch.no_grad()
def test_a_budget_that_keeps_everything_is_an_error():
    model = llava(side=1)  # one visual token
    ids = torch.tensor([[5, IMAGE, 7]])
    with adaptprune.prune(model, "random"), pytest.raises(AdaptPruneError, match="keeps all 1 visual tokens"):
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 14, 14))


def test_a_model_whose_handle_was_forgotten_can_be_freed():
    model = llava()
    adaptprune.prune(model, "adaptprune")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_pruned_model_is_not_copied():
    model = llava()
    with adaptprune.prune(model, "adaptprune"), pytest.raises(AdaptPruneError, match="cannot be copied or pickled"):
        copy.deepcopy(model)
    assert copy.deepcopy(model) is not None


def test_what_is_not_a_model():
    with pytest.raises(AdaptPruneError, match="Linear has no config"):
        adaptprune.prune(torch.nn.Linear(2, 2), "random")


def test_gradients_flow_through_the_kept_tokens():
    model, inputs = llava(), batch(prompt(1, 9))
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25):
        model(**inputs).logits[:, -1].sum().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.language_model.layers[4].mlp.down_proj.weight.grad.abs().sum() > 0


def test_ops_are_reached_from_the_package():
    assert adaptprune.ops.adaptive_nms(
        torch.ones(1, 2), torch.eye(2)[None], torch.zeros(1, 2, 3).long(), 1
    ).tolist() == [[0]]
