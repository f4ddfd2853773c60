"""PEFT's prompt tuning hands the model embeddings with learned ones before them.

generate() is asked without a cache: over one, PEFT 0.21 puts the learned tokens in again at every step, pruned or not
(it looks for `past_key_values` where transformers 5.24 has `cache`).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

import adaptprune
from adaptprune.testing.oracle import hiding
from adaptprune.testing.zoo import SPECIMENS
from tests.asking import close, far, said
from tests.embedded import fresh, merged
from tests.families import first_layer, generate

peft = pytest.importorskip("peft")

LEARNED = 3
FAMILIES = pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_5_vl", "idefics3"])


@cache
def tuned(family: str):
    one = SPECIMENS[family]("sdpa")
    torch.manual_seed(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LEARNED)
    one.model = peft.get_peft_model(one.model, config).eval()
    torch.nn.init.normal_(one.model.prompt_encoder["default"].embedding.weight, std=0.2)
    return one


def base_of(one):
    return one.model.get_base_model()


def gone(one, family, inputs, report) -> list[list[int]]:
    with adaptprune.prune(base_of(one), "random", keep_ratio=1, layer=5) as whole:
        fresh(base_of(one))(**inputs)
    shifted = [[place + LEARNED for place in sample.kept] for sample in whole.samples]
    assert all(set(sample.kept) <= set(row) for row, sample in zip(shifted, report.samples, strict=True))
    return [sorted(set(row) - set(sample.kept)) for row, sample in zip(shifted, report.samples, strict=True)]


def asked(one, inputs, **options):
    fresh(base_of(one))
    return one.model(**inputs, **options)


@FAMILIES
@pytest.mark.parametrize("method", ["adaptprune", "fastv", "random"])
@pytest.mark.parametrize("handed", ["the adapter", "the model in it"])
@torch.no_grad()
def test_a_picture_behind_learned_tokens(family, method, handed):
    one = tuned(family)
    inputs, layer = one.inputs(1, 2, 0), first_layer(family)
    with adaptprune.prune(
        one.model if handed == "the adapter" else base_of(one), method, keep_ratio=0.3, layer=layer
    ) as report:
        logits = asked(one, inputs).logits
    length = inputs["input_ids"].shape[1] + LEARNED
    assert [len(sample.images) for sample in report.samples] == [1, 2, 0]
    assert [kept for sample in report.samples for _, kept in sample.images] == [
        max(1, int(0.3 * count)) for sample in report.samples for count, _ in sample.images
    ]
    assert report.kv_lengths[0] == length
    hidden = gone(one, family, inputs, report)
    with hiding(base_of(one), layer, hidden):
        expected = asked(one, inputs).logits
    close(logits[:, -1], expected[:, -1])
    assert far(logits[:2, -1], asked(one, inputs).logits[:2, -1])


@FAMILIES
@torch.no_grad()
def test_words_behind_learned_tokens(family):
    one = tuned(family)
    ids = torch.tensor([[60, 61, 62, 63]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = asked(one, inputs).logits
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=first_layer(family)) as report:
        assert torch.equal(asked(one, inputs).logits, plain)
    assert plain.shape[1] == 4 + LEARNED
    assert (report.num_visual, report.num_kept, report.prompts) == (0, 0, 1)


@FAMILIES
@pytest.mark.parametrize("method", ["adaptprune", "fastv", "random"])
@torch.no_grad()
def test_generating_behind_learned_tokens(family, method):
    """Tokens are ranked by the prompt's last word at every step, although each reads everything again."""
    one = tuned(family)
    inputs, layer = one.inputs(1, 2), first_layer(family)
    fresh(base_of(one))
    with adaptprune.prune(one.model, method, keep_ratio=0.3, layer=layer) as report:
        words, logits = generate(one, inputs, use_cache=False)
        described = said(report)
        fresh(base_of(one))
        one.model.generate(**inputs, use_cache=False, max_new_tokens=1, do_sample=False)
        assert said(report)["samples"] == described["samples"]
    fresh(base_of(one))
    with hiding(base_of(one), layer, gone(one, family, inputs, report)):
        full, expected = generate(one, inputs, use_cache=False)
    close(logits, expected)
    assert torch.equal(words, full)


@FAMILIES
@torch.no_grad()
def test_generating_from_words_behind_learned_tokens(family):
    one = tuned(family)
    ids = torch.tensor([[60, 61, 62, 63]])
    options = {"input_ids": ids, "max_new_tokens": 4, "do_sample": False, "use_cache": False}
    fresh(base_of(one))
    plain = one.model.generate(**options)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=first_layer(family)) as report:
        fresh(base_of(one))
        assert torch.equal(one.model.generate(**options), plain)
    assert report.num_visual == 0


def test_tuning_a_prompt_under_pruning():
    """The learned tokens have the oracle's gradient."""
    one = tuned("llava")
    inputs = one.inputs(1)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    weight = one.model.prompt_encoder["default"].embedding.weight

    def step():
        one.model.zero_grad()
        loss = one.model(**inputs, labels=labels).loss
        loss.backward()
        return loss.detach(), weight.grad.clone()

    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3) as report:
        found = step()
    with torch.no_grad():
        hidden = gone(one, "llava", inputs, report)
    with hiding(base_of(one), 2, hidden):
        expected = step()
    one.model.zero_grad()
    close(found[0], expected[0])
    close(found[1], expected[1])
    assert float(expected[1].abs().sum()) > 0


@pytest.mark.parametrize("called", ["the adapter", "the model in it", "the adapter, switched off"])
@torch.no_grad()
def test_pictures_from_before_the_context_do_not_pass_for_learned_tokens(called):
    """There are more learned tokens than a picture has, and the model in the adapter is handed none of them."""
    one = SPECIMENS["llava"]("sdpa")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    one.model = peft.get_peft_model(one.model, config).eval()
    base, inputs = base_of(one), one.inputs(1)
    call = {"inputs_embeds": merged(base, inputs, one.image_token_id)}
    with adaptprune.prune(one.model, "random", keep_ratio=0.3):
        if called == "the adapter":
            with pytest.raises(adaptprune.AdaptPruneError):
                one.model(**call)
        elif called == "the model in it":
            with pytest.raises(adaptprune.AdaptPruneError):
                base(**call)
        else:
            with one.model.disable_adapter(), pytest.raises(adaptprune.AdaptPruneError):
                one.model(**call)
