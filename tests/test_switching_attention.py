"""`set_attn_implementation` on a pruned model: as if it had been loaded with that implementation."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import adaptprune
from adaptprune.testing.oracle import hiding
from adaptprune.testing.zoo import SPECIMENS
from tests.asking import KEPT, close, far, first, generate, layer_of, pruning, said
from tests.families import first_layer, gone
from tests.tiny import batch, dropped, llava, prompt

WAYS = pytest.mark.parametrize(("before", "after"), [("sdpa", "eager"), ("eager", "sdpa")])
RESELECT = pytest.mark.parametrize("reselect", [False, True], ids=["once", "reselect"])
RULES = pytest.mark.parametrize("spec", ["fastv", "adaptprune:keys=previous", "random:layer=0"])
WORDS = torch.tensor([[70, 71, 72, 73]])


def implementations(model) -> set[str]:
    """What the decoder's attention runs by, the layer that is watched left out."""
    layers = model.model.language_model.layers
    names = {layer.self_attn.config._attn_implementation for layer in layers}
    return {name for name in names if "adaptprune" not in name}


@WAYS
@RULES
@RESELECT
@torch.no_grad()
def test_switched_under_the_context(before, after, spec, reselect):
    model, inputs = llava(before), batch(prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4))
    with pruning(model, spec, reselect=reselect) as report:
        generate(model, inputs)
        model.set_attn_implementation(after)
        assert implementations(model) == {after}
        words, logits = generate(model, inputs)
        short = model(**inputs).logits
    other = llava(after)
    with pruning(other, spec, reselect=reselect) as fresh:
        line, expected = generate(other, inputs)
        close(short, other(**inputs).logits)
    close(logits, expected)
    assert torch.equal(words, line)
    assert said(report) == said(fresh)
    assert report.attention_backend == after
    assert [sample.num_kept for sample in report.samples] == [KEPT, 2 * KEPT, 0]
    with hiding(model, layer_of(spec), dropped(report, inputs)):  # still switched, and no longer pruned
        _, full = generate(model, inputs)
    close(logits, full)
    assert far(logits, generate(model, inputs)[1])
    assert implementations(model) == {after}
    for module in model.modules():
        assert "adaptprune" not in str(getattr(getattr(module, "config", None), "_attn_implementation", ""))


@WAYS
@RULES
@RESELECT
@torch.no_grad()
def test_switched_between_two_turns(before, after, spec, reselect):
    inputs = first()

    def talk(model, switch: str | None):
        cache = DynamicCache(config=model.config.text_config)
        with pruning(model, spec, reselect=reselect) as report:
            one = model(**inputs, past_key_values=cache).logits
            if switch:
                model.set_attn_implementation(switch)
            two = model(input_ids=WORDS, past_key_values=cache).logits
            step = model(input_ids=WORDS[:, :1], past_key_values=cache).logits
            if switch:
                model.set_attn_implementation(before)
            back = model(input_ids=WORDS + 4, past_key_values=cache).logits
            return [one[:, -1], two[:, -1], step[:, -1], back[:, -1]], said(report)

    found, report = talk(llava(before), after)
    for attention in (before, after):
        expected, fresh = talk(llava(attention), None)
        close(found, expected)
        assert report["samples"] == fresh["samples"]
        assert report["kv_lengths"] == fresh["kv_lengths"]


@WAYS
@torch.no_grad()
def test_switched_while_generating(before, after):
    model, inputs, calls = llava(before), first(), []

    def switch(ids, scores):
        calls.append(len(calls))
        model.set_attn_implementation(after if len(calls) % 2 else before)
        return scores

    with pruning(model, "fastv") as report:
        words, logits = generate(model, inputs, switch)
    assert len(calls) == 4
    other = llava(before)
    with hiding(other, 2, dropped(report, inputs)):
        full, expected = generate(other, inputs)
    close(logits, expected)
    assert torch.equal(words, full)


@WAYS
@torch.no_grad()
def test_switched_before_the_first_prompt_and_within_a_guided_generate(before, after):
    model, inputs = llava(before), first()
    with pruning(model, "fastv") as report:
        model.set_attn_implementation(after)
        words, logits = generate(model, inputs, guidance_scale=1.7, negative_prompt_ids=prompt(0, 40, 5)[None])
    other = llava(after)
    with pruning(other, "fastv") as fresh:
        line, expected = generate(other, inputs, guidance_scale=1.7, negative_prompt_ids=prompt(0, 40, 5)[None])
    close(logits, expected)
    assert torch.equal(words, line)
    assert said(report) == said(fresh)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "idefics3", "internvl"])
@WAYS
@torch.no_grad()
def test_other_families(family, before, after):
    one, other = SPECIMENS[family](before), SPECIMENS[family](after)
    inputs, layer = one.inputs(1, 2), first_layer(family)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=layer) as report:
        one.model(**inputs)
        one.model.set_attn_implementation(after)
        words, logits = generate(one.model, inputs)
    with adaptprune.prune(other.model, "fastv", keep_ratio=0.3, layer=layer) as fresh:
        line, expected = generate(other.model, inputs)
    close(logits, expected)
    assert torch.equal(words, line)
    assert said(report) == said(fresh)
    with hiding(other.model, layer, gone(one, inputs, report)):
        close(logits, generate(other.model, inputs)[1])
