"""Decoders with layers that do not hold keys of their own: what is asked of them, and what is refused by name.

Linear attention, convolution and state-space layers remember otherwise; in Gemma 3n and 4, late layers read the keys of
earlier ones; and Gemma 4 goes on with the last tokens alone before those.
"""

from __future__ import annotations

import re

import pytest
import torch
from transformers import DynamicCache

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams import parts_of
from adaptprune.testing.oracle import attends, decoder_layers
from tests.families import (
    HYBRID,
    SHARING,
    all_of,
    equal,
    extended,
    first_layer,
    generate,
    gone,
    oracle,
    pruned,
    specimen,
    suiting,
)

#: One of each kind.
MEMORIES = pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", "lfm3_vl", "nemotron_h_omni", "gemma3n", "gemma4"])


def cache_of(one) -> DynamicCache:
    return DynamicCache(config=one.model.config.get_text_config())


def second(one, family, first, cache, seed: int = 3):
    """Inputs of a later turn with a picture of its own, and of both turns together."""
    more = one.inputs(1, seed=seed)
    ids = torch.cat([first["input_ids"], more["input_ids"]], dim=1)
    mask = torch.ones_like(ids)
    call = {**more, "attention_mask": mask, "past_key_values": cache}
    whole = {key: torch.cat([first[key], value]) for key, value in more.items() if key not in EACH}
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in more:
            whole[key] = torch.cat([first[key], more[key]], dim=1)
    return call, {**whole, "input_ids": ids, "attention_mask": mask}


EACH = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@MEMORIES
@torch.no_grad()
def test_a_second_turn_with_a_picture(family):
    """New pictures are pruned, old tokens stay as they were: as the oracle does it, turn by turn over its own cache."""
    one, layer, first = specimen(family), first_layer(family), specimen(family).inputs(1)
    base, start = parts_of(one.model).base, first["input_ids"].shape[1]

    def turns():
        """Logits of both turns, and what the report says after each."""
        cache, logits, kept = cache_of(one), [], []
        for call in (first, second(one, family, first, None)[0]):
            if hasattr(base, "rope_deltas"):
                base.rope_deltas = None
            positions = {}
            if "past_key_values" in call and hasattr(base, "get_rope_index"):  # stock Qwen does not count on
                place = torch.arange(start, call["attention_mask"].shape[1])
                positions = {"position_ids": place.expand(3, 1, -1)}
            out = one.model(**{**call, "past_key_values": cache, **positions})
            logits.append(out.logits[:, -1])
            kept.append([list(sample.kept) for sample in report.samples] if report else None)
        return logits, kept

    with pruned(one, family) as report:
        logits, kept = turns()
        assert min(kept[1][0]) >= start
    more = second(one, family, first, None)[0]
    new = dict(one.inputs(1, seed=3))
    places = all_of(one, first)[0], [place + start for place in all_of(one, new)[0]]
    hidden = sorted({*places[0], *places[1]} - {*kept[0][0], *kept[1][0]})
    assert len(hidden) > len(places[1]) / 2
    report = None
    with oracle(one, more, layer, [hidden]):
        expected, _ = turns()
    equal(torch.stack(logits), torch.stack(expected))


@MEMORIES
@pytest.mark.parametrize("evict_below", [False, True])
@torch.no_grad()
def test_without_a_cache_every_step_reads_the_whole(family, evict_below):
    """use_cache=False: each step is a prompt of its own; nothing is left to evict."""
    one, layer = specimen(family), first_layer(family)
    inputs = one.inputs(1)
    with pruned(one, family, "random", evict_below=evict_below) as report:
        out = one.model(**inputs, use_cache=False)
        assert report.kv_lengths == []
        assert 0 < report.num_kept < report.num_visual
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        expected = one.model(**inputs, use_cache=False).logits
    equal(out.logits[:, -1], expected[:, -1])


@MEMORIES
@torch.no_grad()
def test_logits_to_keep(family):
    """The last token's, several of the last, places of the unpruned prompt, and all: those of the oracle."""
    one, layer = specimen(family), first_layer(family)
    inputs = one.inputs(2)
    length = inputs["input_ids"].shape[1]
    places = torch.tensor([length - 5, length - 2, length - 1])
    with pruned(one, family) as report:
        hidden = None
        found = {}
        for keep in (1, 3, 0):
            found[keep] = one.model(**inputs, logits_to_keep=keep).logits
            assert hidden in (None, report.samples[0].kept)
            hidden = report.samples[0].kept
        some = one.model(**inputs, logits_to_keep=places).logits
    dropped = gone(one, inputs, report)
    assert not set(range(length - 5, length)) & set(dropped[0])
    with oracle(one, inputs, layer, dropped):
        full = one.model(**inputs).logits
    stays = sorted(set(range(length)) - set(dropped[0]))
    equal(found[1], full[:, -1:])
    equal(found[3], full[:, -3:])
    equal(found[0], full[:, stays])
    equal(some, full[:, places])


@torch.no_grad()
def test_a_cut_tail_that_reaches_back_to_dropped_tokens_is_refused():
    """Gemma 4 hands on its last tokens alone, if it has masks: among those there may be none that left."""
    one = specimen("gemma4", "eager")
    inputs = one.inputs(1)
    length = inputs["input_ids"].shape[1]
    with pruned(one, "gemma4"), pytest.raises(AdaptPruneError, match=f"logits_to_keep={length - 1} reaches back"):
        one.model(**inputs, logits_to_keep=length - 1)
    assert torch.isfinite(one.model(**inputs, logits_to_keep=length - 1).logits).all()


@MEMORIES
@torch.no_grad()
def test_beams_over_another_memory(family):
    one, layer = specimen(family), first_layer(family)
    inputs = one.inputs(2)
    with pruned(one, family, "random") as report:
        one.model(**inputs)
        hidden = [list(sample.kept) for sample in report.samples]
        words = one.model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)
        assert [sample.kept for sample in report.samples] == hidden * 3
    dropped = [sorted(set(whole) - set(kept)) for whole, kept in zip(all_of(one, inputs), hidden, strict=True)]
    with oracle(one, inputs, layer, dropped):
        full = one.model.generate(**inputs, max_new_tokens=5, num_beams=3, do_sample=False)
    assert torch.equal(words, full)


@pytest.mark.parametrize("family", HYBRID)
def test_a_rule_without_its_cue_is_refused_and_what_is_named_works(family):
    """Above a layer without attention, and where layer K has no keys: the error names a K or an option that works."""
    one = specimen(family)
    layers = decoder_layers(one.model)
    asked = 0
    for method in ("adaptprune", "fastv"):
        for layer in range(1, len(layers)):
            has_attention, has_keys = attends(layers[layer - 1]), attends(layers[layer])
            suits = has_attention and (has_keys or method == "fastv")
            if suits:
                adaptprune.prune(one.model, method, layer=layer).remove()
                continue
            with pytest.raises(AdaptPruneError, match=f"layer={layer} does not suit this model") as error:
                adaptprune.prune(one.model, method, layer=layer)
            asked += 1
            said = str(error.value)
            number, keys = re.search(r"Use layer=(\d+)( with keys='previous')?", said).groups()
            more = {"keys": "previous"} if keys else {}
            with (
                torch.no_grad(),
                adaptprune.prune(one.model, method, keep_ratio=0.3, layer=int(number), **more) as report,
            ):
                one.model(**one.inputs(1))
            assert 0 < report.num_kept < report.num_visual
    assert asked > 2


@pytest.mark.parametrize("family", SHARING)
def test_a_layer_behind_the_source_of_shared_keys_is_refused(family):
    """Late layers would see dropped tokens again, by the keys of a layer before K: the error names the range."""
    one = specimen(family)
    for layer in (3, 4, 5):
        with pytest.raises(AdaptPruneError, match=f"layer={layer} is too late.*read the keys.*use 0 to 2"):
            adaptprune.prune(one.model, "random", layer=layer)
    for layer in (0, 1, 2):
        with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=layer) as report:
            one.model(**one.inputs(1))
        assert 0 < report.num_kept < report.num_visual


@MEMORIES
@torch.no_grad()
def test_only_layers_with_keys_are_counted(family):
    one = specimen(family)
    with pruned(one, family, "random") as report:
        one.model(**one.inputs(1), past_key_values=cache_of(one))
    layers = decoder_layers(one.model)
    own = [
        attends(layer) and not any(getattr(each, "is_kv_shared_layer", False) for each in layer.modules())
        for layer in layers
    ]
    for number, has in enumerate(own):
        held = report.kv_lengths[number] if number < len(report.kv_lengths) else 0
        assert (held > 0) == has
    assert 0 < report.kv_bytes < report.kv_bytes_unpruned


@pytest.mark.parametrize("family", HYBRID)
@torch.no_grad()
def test_padding_on_the_right(family):
    """A row's answer to a prompt that is padded behind is what it is alone, if that holds for the model unpruned."""
    one = specimen(family)
    alone = one.inputs(1)
    length = alone["input_ids"].shape[1]
    ids = torch.nn.functional.pad(alone["input_ids"], (0, 4))
    padded = extended(alone, ids, torch.nn.functional.pad(alone["attention_mask"], (0, 4)))
    plain = one.model(**alone).logits[0, -1], one.model(**padded).logits[0, length - 1]
    equal(*plain)
    with pruned(one, family) as report:
        short, kept = one.model(**alone).logits[0, -1], report.samples[0].kept
        long = one.model(**padded).logits[0]
        assert report.samples[0].kept == kept
    equal(long[len(long) - 5], short)


@pytest.mark.parametrize("family", ["lfm2_vl", "gemma3n"])
@torch.no_grad()
def test_decoding_goes_on_after_words_are_taken_back(family):
    """Where stock caches can be cropped: prompt lookup takes back what it guessed wrongly."""
    one = specimen(family)
    inputs = one.inputs(1)
    with pruned(one, family):
        greedy = one.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        again = one.model.generate(**inputs, max_new_tokens=16, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, again)


@pytest.mark.parametrize("budget", ["image", "grid", "joint"])
@MEMORIES
@torch.no_grad()
def test_budgets(family, budget):
    one, layer = specimen(family), first_layer(family)
    inputs = one.inputs(1, 2)
    with pruned(one, family, budget=budget) as report:
        _, logits = generate(one, inputs, 3)
    for sample in report.samples:
        if budget == "joint":
            assert sample.num_kept == int(0.3 * sample.num_visual)
        elif budget == "image":
            assert [kept for _, kept in sample.images] == [max(1, int(0.3 * count)) for count, _ in sample.images]
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        equal(logits, generate(one, inputs, 3)[1])


def test_what_suits_is_what_is_tested():
    assert suiting("qwen3_5") == {"method": "adaptprune", "layer": 2, "keys": "previous"}
    assert suiting("llava") == {"method": "adaptprune", "layer": 2}
    assert suiting("qwen3_vl", "random")["layer"] == 3


@torch.no_grad()
def test_tokens_that_the_ranking_layer_does_not_see_are_said():
    """A sliding layer pays no attention to what lies outside its window: the report says so, and what sees all."""
    one = specimen("gemma3")
    inputs = one.inputs(2)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=3) as report:  # layer 2 slides
        one.model.generate(**inputs, max_new_tokens=1)
    (note,) = report.notes
    count = int(note.split()[0])
    assert note.endswith("outside the window of layer 2, which ranks them; layer=5 is ranked by one that sees all")
    assert 0 < count < report.num_visual
    assert note in str(report)
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=2) as report:  # layer 1 sees all
        one.model.generate(**inputs, max_new_tokens=1)
    assert report.notes == []
    with adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=3) as report:
        one.model.generate(**inputs, max_new_tokens=1)
    assert report.notes == []
