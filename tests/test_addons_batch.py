"""Packed positions and key bias in the ragged batch, in one conversation, and coordinate tokens."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, Random
from adaptprune.engines import LocalEngine, Pruning, Sampling
from adaptprune.engines.batch.batch import Batch
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Job
from adaptprune.methods import make_pruner
from adaptprune.prompts import Prompter, Turn, question
from adaptprune.testing.oracle import decoder_layers
from adaptprune.testing.zoo import SPECIMENS
from tests.addons import NO_ROTARY, PACKABLE, UNPACKABLE, TwoStages, decoder_of
from tests.asking import far
from tests.families import FAMILY, first_layer, specimen, suiting
from tests.test_serve_decoders import NoTokenizer, written
from tests.tiny import batch, llava, prompt

TOKENS = 8
SERVED = [
    name
    for name in (
        "llava", "lfm2_vl", "molmo2", "kimi_k25", "paligemma", "gemma3", "gemma4", "qwen2_5_vl", "llama4", "qwen3_5",
    )
    if name in SPECIMENS
]  # fmt: skip
BOTH = {"positions": "packed", "key_bias": 1.0}


@torch.inference_mode()
def alone(model, inputs, pruner, length):
    with adaptprune.prune(model, pruner) if pruner else nullcontext():
        words = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return words[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_every_kind_beside_each_other(attention):
    """Joining and leaving at random; rows longer than the first buffers, so that these grow."""
    model, rules = llava(attention), [
        make_pruner("random", layer=0, keep_ratio=0.2, positions="packed"),
        make_pruner("random", layer=0, keep_ratio=0.3, key_bias=1.0),
        None,
        make_pruner("fastv", layer=2, keep_ratio=0.2, **BOTH),
        TwoStages(**BOTH),
        make_pruner("fastv", layer=3, keep_ratio=0.5),
        make_pruner("random", layer=2, keep_ratio=0.1, key_bias=0.5),
        make_pruner("random", layer=1, keep_ratio=0.1, positions="packed"),
    ]  # fmt: skip
    requests = [
        (batch(prompt(1 + seed % 2, 9 + 3 * seed, seed), seed=seed), rule, 8 + 7 * (seed % 4))
        for seed, rule in enumerate(rules)
    ]
    expected = [alone(model, *one) for one in requests]
    assert written(model, requests) == expected
    plain = [alone(model, inputs, rule and rule.replace(positions="original", key_bias=0.0), length)
             for inputs, rule, length in requests]  # fmt: skip
    assert sum(a != b for a, b in zip(expected, plain, strict=True)) >= 5


@pytest.mark.parametrize("name", SERVED)
def test_families_are_served_with_them(name):
    """What each family can have, beside rows without it."""
    one = specimen(name)
    inputs = Prompter(one.processor, one.model).inputs([Turn("user", [*one.pictures(1), "w3 w4 w5"])])
    options = BOTH if name in PACKABLE else {"key_bias": 1.0}
    rules = [make_pruner(**suiting(name, "fastv"), keep_ratio=0.3, **options), None]
    rules.append(make_pruner(**suiting(name, "random"), keep_ratio=0.5, **options))
    requests = [(inputs, rule, TOKENS) for rule in rules]
    assert written(one.model, requests) == [alone(one.model, *each) for each in requests]


@torch.inference_mode()
def test_a_step_that_failed_is_taken_back():
    model, rule = llava(), make_pruner("random", layer=2, keep_ratio=0.2, **BOTH)
    requests = [(batch(prompt(1, 9)), rule, TOKENS), (batch(prompt(2, 14, 3)), None, TOKENS)]
    expected = [alone(model, *one) for one in requests]
    running = Batch(model, None, NoTokenizer())
    for inputs, pruner, length in requests:
        job = Job(Sampling(length), pruner, lambda event: None, 1e9, inputs=inputs, max_tokens=length)
        list(running.read(job))
    broken = model.model.language_model.layers[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        running.step()
    broken.remove()
    for _ in range(TOKENS - 1):
        list(running.step())
    assert [list(row.tokens) for row in running.rows] == expected
    running.close()


@pytest.mark.parametrize("name", [name for name in ("qwen2_5_vl", "gemma3", "nemotron_h_omni") if name in SPECIMENS])
def test_what_does_not_suit_a_model_is_refused_before_anything_is_read(name):
    one = specimen(name)
    packed, biased = (
        make_pruner(**suiting(name, "random"), **options).spec()
        for options in ({"positions": "packed"}, {"key_bias": 1.0})
    )
    engines = Engine(name, one.model, one.processor), LocalEngine(one.model, one.processor)
    for engine in engines:
        with pytest.raises(AdaptPruneError, match=UNPACKABLE[name]):
            engine.check(Pruning(packed))
    config = decoder_of(one).config
    config._attn_implementation = "flash_attention_2"
    try:
        for engine in engines:
            with pytest.raises(AdaptPruneError, match="key_bias.*flash_attention_2"):
                engine.check(Pruning(biased))
    finally:
        config._attn_implementation = "sdpa"


@pytest.mark.parametrize("reselect", [False, True])
def test_a_conversation_over_a_kept_cache(reselect):
    """A second question, whose earlier words are still there, is answered as in one engine that reads all anew.

    Packed tokens cannot be chosen anew over a cache, so that the engine reads anew by itself.
    """
    one = specimen("llava")
    pruning = Pruning(make_pruner("random", layer=2, keep_ratio=0.3, **BOTH), reselect=reselect)
    turns = question("w3 w4 w5", one.pictures(1))
    engine, other = (LocalEngine(one.model, one.processor) for _ in range(2))
    first = engine.ask(turns, Sampling(4, temperature=0.0), pruning)
    turns = [*turns, Turn("assistant", [first.text]), Turn("user", ["w7 w8"])]
    second = engine.ask(turns, Sampling(6, temperature=0.0), pruning)
    engine.close()
    whole = other.ask(turns, Sampling(6, temperature=0.0), pruning)
    other.close()
    assert second.text == whole.text
    assert (second.read_tokens == second.prompt_tokens) == reselect


# -- coordinate tokens -------------------------------------------------------------------------------------------------

SHOWN: list = []


class Spy(Random):
    """Notes the position embeddings that it is handed."""

    def choose(self, tokens, num_keep):
        SHOWN.append(tokens.rotary)
        return super().choose(tokens, num_keep)


def top(part, count):
    """Places of the highest means over everything but tokens."""
    means = part.double().flatten(1).mean(dim=1)
    return set(sorted(range(len(means)), key=lambda place: (-float(means[place]), place))[:count])


@FAMILY
@torch.no_grad()
def test_coordinate_tokens_are_those_of_layer_k(family):
    one, layer = specimen(family), first_layer(family)
    inputs, handed = one.inputs(1), []
    rule = Spy(layer=layer, keep_ratio=0.5, coordinate_tokens=0.2)
    if family in NO_ROTARY:
        with pytest.raises(AdaptPruneError, match="has no position embeddings handed to it. Use coordinate_tokens=0"):
            adaptprune.prune(one.model, rule)
        return
    with adaptprune.prune(one.model, "random", layer=layer, keep_ratio=1) as whole:
        one.model(**inputs)
    SHOWN.clear()
    hook = decoder_layers(one.model)[layer].register_forward_pre_hook(
        lambda module, args, kwargs: handed.append(kwargs.get("position_embeddings", args[1:2])),
        with_kwargs=True,
    )
    one.model(**inputs)
    with adaptprune.prune(one.model, rule) as report:
        one.model(**inputs)
    hook.remove()
    places = torch.tensor(whole.samples[0].kept)
    pair = handed[0][0] if len(handed[0]) == 1 and isinstance(handed[0], tuple) else handed[0]
    parts = (pair.real, pair.imag) if isinstance(pair, torch.Tensor) else pair
    ends = torch.tensor([count for count, _ in whole.samples[0].images]).cumsum(0).tolist()
    kept = report.samples[0].kept
    for (cos, sin), start, end in zip(SHOWN, [0, *ends], ends, strict=False):
        mine = places[start:end]
        for part, shown in zip(parts, (cos, sin), strict=True):
            torch.testing.assert_close(shown, part[0, mine], atol=0, rtol=0)
            always = mine[sorted(top(shown, max(1, int(0.2 * len(mine)))))]
            assert set(always.tolist()) <= set(kept)
    assert len(kept) == sum(max(1, count // 2) for count, _ in whole.samples[0].images)


@torch.no_grad()
def test_more_coordinate_tokens_than_are_kept_are_refused():
    model = llava()
    with (
        adaptprune.prune(model, "random", keep_ratio=0.1, coordinate_tokens=0.1),
        pytest.raises(AdaptPruneError, match="coordinate_tokens=0.1 always keeps .* use a smaller fraction"),
    ):
        model(**batch(prompt(1, 9)))


@torch.no_grad()
def test_coordinate_tokens_chosen_anew():
    """Of the whole conversation, as in a new cache."""
    model, first, second = llava(), batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2)
    whole = {name: torch.cat([first[name], second[name]], dim=1) for name in ("input_ids", "attention_mask")}
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    rule = make_pruner("fastv", layer=2, keep_ratio=0.3, coordinate_tokens=0.1)
    with adaptprune.prune(model, rule, reselect=True) as report:
        cache = model(**first).past_key_values
        found = model(**{**second, "attention_mask": whole["attention_mask"]}, past_key_values=cache).logits[:, -1]
        kept = report.samples[0].kept
    with adaptprune.prune(model, rule) as report:
        expected = model(**whole).logits[:, -1]
    assert kept == report.samples[0].kept
    assert not far(found, expected)


@torch.no_grad()
def test_a_copy_of_a_model_that_is_served_runs_by_itself():
    """Copying a model copies its hooks, too: they must not look for what the model's own have noted."""
    one = specimen("qwen2_5_vl")
    batch = Batch(one.model, one.processor, one.processor.tokenizer)
    try:
        twin, inputs = copy.deepcopy(one.model), one.inputs(1)
        assert torch.equal(twin(**inputs).logits, one.model(**inputs).logits)
        assert torch.equal(twin(**inputs).logits, one.model(**inputs).logits)
    finally:
        batch.close()
