"""key_bias: kept keys weigh as much as the tokens that they stand for, from the stage on and ever after."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, Random
from adaptprune.hooks.handle import check_suits
from adaptprune.testing.oracle import attends, decoder_layers, hiding
from adaptprune.testing.zoo import SPECIMENS
from tests.addons import FirstStage, TwoStages, biased, even, renumbered, tiny
from tests.asking import far
from tests.families import FAMILY, HYBRID, KINDS, equal, first_layer, generate, gone, oracle, specimen, suiting
from tests.tiny import CASES, IMAGE, batch, dropped, llava, prompt


def adding(one, layer, method="random", factor=1.0, **options):
    return adaptprune.prune(one.model, method, layer=layer, keep_ratio=0.3, key_bias=factor, **options)


def check_family(name, attention):
    one, layer = specimen(name, attention), first_layer(name)
    inputs = one.inputs(1, 2, 0)
    with adding(one, **suiting(name, "fastv")) as report:
        words, logits = generate(one, inputs, 3)
    hidden, biases = gone(one, inputs, report), even(report)
    assert biases[2] == {}
    with oracle(one, inputs, layer, hidden), biased(one, layer, biases):
        full, expected = generate(one, inputs, 3)
    with oracle(one, inputs, layer, hidden):
        plain = generate(one, inputs, 3)[1]
    equal(logits, expected)
    assert torch.equal(words, full)
    assert far(logits[:2], plain[:2])


@FAMILY
@torch.no_grad()
def test_it_equals_the_oracle_whose_mask_adds_it(family):
    check_family(family, "sdpa")


@pytest.mark.parametrize("family", [name for name in KINDS.values() if name in SPECIMENS])
@torch.no_grad()
def test_with_eager_attention(family):
    check_family(family, "eager")


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_no_bias_changes_nothing(layer):
    """Bit for bit, and no mask is made where there was none."""
    one, inputs, seen = tiny(), batch(prompt(1, 9)), []
    hook = decoder_layers(one.model)[3].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with adaptprune.prune(one.model, "random", layer=layer, keep_ratio=0.3):
        _, logits = generate(one, inputs)
    with adding(one, layer, factor=0.0):
        assert torch.equal(generate(one, inputs)[1], logits)
    assert all(mask is None for mask in seen)
    hook.remove()


@dataclass(frozen=True)
class Uneven(Random):
    """Kept tokens stand for 1, 2, 3, ... of the first ones."""

    def weights(self, tokens, keep):
        return 1.0 + torch.arange(len(keep))


@pytest.mark.parametrize("factor", [1.0, 0.5])
@torch.no_grad()
def test_a_rule_says_what_each_token_stands_for(factor):
    one, inputs = tiny(), batch(prompt(1, 9))
    with adaptprune.prune(one.model, Uneven(layer=2, keep_ratio=0.3, key_bias=factor)) as report:
        _, logits = generate(one, inputs)
    biases = {place: factor * math.log(1 + number) for number, place in enumerate(report.samples[0].kept)}
    with hiding(one.model, 2, dropped(report, inputs)), biased(one, 2, [biases]):
        equal(logits, generate(one, inputs)[1])


@pytest.mark.parametrize("given", [torch.zeros(10), torch.ones(3), torch.full((10,), float("nan"))])
@torch.no_grad()
def test_weights_that_are_none_are_refused(given):
    class Broken(Random):
        def weights(self, tokens, keep):
            return given

    model = llava()
    with (
        adaptprune.prune(model, Broken(layer=2, keep_ratio=0.3, key_bias=1.0)),
        pytest.raises(AdaptPruneError, match="gave weights.*a number above 0"),
    ):
        model(**batch(prompt(1, 9)))


def after(two, one):
    """The biases of a second stage, less those of the first, which are in the mask already."""
    return [{place: value - one[row][place] for place, value in line.items()} for row, line in enumerate(two)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"positions": "packed"}, {"evict_below": True}], ids=str)
@torch.no_grad()
def test_every_stage_weighs_anew(attention, options):
    one, inputs, found = tiny(attention), CASES["ragged left"](), {}
    options = dict(options)
    evict = options.pop("evict_below", False)
    for stage, rule in ((1, FirstStage), (3, TwoStages)):
        with adaptprune.prune(one.model, rule(key_bias=1.0, **options), evict_below=evict) as report:
            _, logits = generate(one, inputs)
            found[stage] = dropped(report, inputs), even(report)
    (first, biases), (second, others), mask = found[1], found[3], inputs["attention_mask"]
    with (
        hiding(one.model, 1, first, padding=mask),
        hiding(one.model, 3, second, decode_from=0 if evict else None, padding=mask),
        biased(one, 1, biases),
        biased(one, 3, after(others, biases)),
    ):
        if options:
            with renumbered(one, {1: first, 3: second}):
                expected = generate(one, inputs)[1]
        else:
            expected = generate(one, inputs)[1]
    equal(logits, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}])
@torch.no_grad()
def test_beams_and_drafts(options):
    one = tiny()
    inputs = batch(prompt(1, 15)) if "prompt_lookup_num_tokens" in options else CASES["ragged left"]()
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE], **options}
    with adding(one, 2) as report:
        words = one.model.generate(**inputs, **settings)
    report.samples = report.samples[:: options.get("num_beams", 1)]
    with hiding(one.model, 2, dropped(report, inputs)), biased(one, 2, even(report)):
        assert torch.equal(one.model.generate(**inputs, **settings), words)


def read_two(one, first, second, crop):
    cache = one.model(**first).past_key_values
    if crop:
        one.model(torch.full((1, crop), 9), past_key_values=cache)
        cache.crop(-crop)
    more = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    answer = one.model(**{**second, "attention_mask": more}, past_key_values=cache).logits[:, -1]
    return torch.stack([answer, one.model(torch.tensor([[7]]), past_key_values=cache).logits[:, -1]], dim=1)


@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_turns_over_a_kept_cache(layer, crop):
    one, first, second = tiny(), batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2)
    start = first["input_ids"].shape[1]
    with adding(one, layer) as report:
        one.model(**first)
        hidden, biases = dropped(report, first)[0], even(report)[0]
        logits = read_two(one, first, second, crop)
    visual = (second["input_ids"][0] == IMAGE).nonzero()[:, 0] + start
    hidden += sorted(set(visual.tolist()) - set(report.samples[0].kept))
    biases |= even(report)[0]
    with hiding(one.model, layer, [hidden]), biased(one, layer, [biases]):
        equal(logits, read_two(one, first, second, 0))


@torch.no_grad()
def test_chosen_anew_they_weigh_as_in_a_new_cache():
    one, first, second = tiny(), batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2)
    whole = {name: torch.cat([first[name], second[name]], dim=1) for name in ("input_ids", "attention_mask")}
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    with adding(one, 2, "fastv", reselect=True):
        found = read_two(one, first, second, 0)
    with adding(one, 2, "fastv"):
        out = one.model(**whole)
        step = one.model(torch.tensor([[7]]), past_key_values=out.past_key_values)
    equal(found, torch.stack([out.logits[:, -1], step.logits[:, -1]], dim=1))


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
@torch.no_grad()
def test_attention_that_adds_nothing_is_refused_by_name(attention):
    model, inputs = llava(), batch(prompt(1, 9))
    decoder, said = model.model.language_model.config, f"key_bias.*{attention} takes no mask of numbers"
    with adaptprune.prune(model, "random", key_bias=1.0):
        cache = model(**inputs).past_key_values
        decoder._attn_implementation = attention  # as set_attn_implementation does
        with pytest.raises(AdaptPruneError, match=said):
            model(torch.tensor([[5]]), past_key_values=copy.deepcopy(cache))
    with pytest.raises(AdaptPruneError, match=said):
        adaptprune.prune(model, "random", key_bias=1.0)
    with pytest.raises(AdaptPruneError, match=said):
        check_suits(model, adaptprune.make_pruner("random", key_bias=1.0))


@pytest.mark.parametrize("name", [name for name in HYBRID if name in SPECIMENS])
@torch.no_grad()
def test_layers_without_keys_are_left_alone(name):
    """They are handed as their mask what they are handed without a bias."""
    one, found, seen = specimen(name), [], []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
        )
        for layer in decoder_layers(one.model)
        if not attends(layer)
    ]
    assert hooks
    for factor in (0.0, 1.0):
        with adding(one, first_layer(name), factor=factor):
            one.model(**one.inputs(1, 2))
        found.append(list(seen))
        seen.clear()
    for hook in hooks:
        hook.remove()
    for plain, mask in zip(*found, strict=True):
        assert plain is mask is None or torch.equal(plain, mask)
