"""Cues are what the model itself computes: compared with its own attentions, states and caches, family by family."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, Pruner
from adaptprune.errors import CannotReselect
from adaptprune.hooks.cues import REMEMBERED
from adaptprune.testing.oracle import attends, decoder_layers
from adaptprune.testing.zoo import SPECIMENS
from tests.families import first_layer_of, specimen
from tests.spy import SHOWN, Spy

NAMES = list(SPECIMENS)


def shown(one, cue, layer, *counts, **options):
    """What the rule is shown of every image of a batch, and the batch."""
    inputs = one.inputs(*(counts or (1,)))
    SHOWN.clear()
    with torch.no_grad(), adaptprune.prune(one.model, Spy(cue=cue, layer=layer, keep_ratio=0.5), **options) as report:
        one.model(**inputs)
    return list(SHOWN), inputs, report


def states_before(one, inputs):
    """By layer, what it reads and what it is handed, unpruned; and the cache."""
    read: dict = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, number=number: read.__setitem__(
                number, (args[0] if args else kwargs["hidden_states"]).detach()
            ),
            with_kwargs=True,
        )
        for number, layer in enumerate(decoder_layers(one.model))
    ]
    with torch.no_grad():
        out = one.model(**inputs, use_cache=True)
    for hook in hooks:
        hook.remove()
    return read, out


def places_of(one, layer, inputs):
    """Where the prompt's visual tokens are, with and without a place in a picture; and the instruction behind them."""
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=1, layer=layer) as report:
        one.model(**inputs)
    tokens = torch.tensor(report.samples[0].kept)
    return tokens, torch.arange(int(tokens[-1]) + 1, inputs["input_ids"].shape[1])


def try_shown(one, cue, layer):
    """What the rule is shown, or why it is refused."""
    try:
        return shown(one, cue, layer)
    except AdaptPruneError as error:
        said = str(error)
    assert "went wrong" not in said
    return said


@pytest.mark.parametrize("name", NAMES)
def test_states(name):
    one = specimen(name)
    layer = first_layer_of(one.model)
    found = try_shown(one, "text_hidden+previous_hidden+features", layer)
    (tokens,), inputs, _ = found
    places, words = places_of(one, layer, inputs)
    read, _ = states_before(one, inputs)
    pairs = [
        (tokens.hidden, read[layer], places),
        (tokens.text_hidden, read[layer], words),
        (tokens.previous_hidden, read[layer - 1], places),
        (tokens.features, read[0], places),
        (tokens.text, read[0], words),
    ]
    for cue, states, where in pairs:
        if states.ndim == 4:  # streams
            states = (
                states[0]
                if states.shape[1] == 1 and states.shape[2] == inputs["input_ids"].shape[1]
                else states[:, :, 0]
            )
        torch.testing.assert_close(cue, states[0, where], atol=1e-6, rtol=0)
    assert tokens.layer == layer
    assert tokens.num_layers == len(decoder_layers(one.model))
    assert tokens.whole == len(places)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_models_own(name):
    """Against attention weights that eager attention returns; the last row is the cue `attention`."""
    one = specimen(name, "eager")
    layer = first_layer_of(one.model)
    found = try_shown(one, "rows+attention+rotated_keys", layer)
    if isinstance(found, str):
        assert not attends(decoder_layers(one.model)[layer - 1]), found
        return
    (tokens,), inputs, _ = found
    places, words = places_of(one, layer, inputs)
    with torch.no_grad():
        out = one.model(**inputs, output_attentions=True, use_cache=True)
    torch.testing.assert_close(tokens.rows[:, -1], tokens.attention, atol=1e-6, rtol=0)
    probabilities = [each for each in out.attentions if each is not None]
    if len(probabilities) == len(decoder_layers(one.model)):
        own = probabilities[layer - 1][0].float()
        torch.testing.assert_close(tokens.rows, own[:, words][:, :, places], atol=2e-5, rtol=0)
    else:
        assert len(probabilities) < len(decoder_layers(one.model))  # hybrids: their indices are not the layers'
    assert tokens.rotated_keys.shape[0] == len(places)
    assert tokens.text_rotated_keys.shape[0] == len(words)
    cache = getattr(out, "cache", None) or getattr(out, "past_key_values", None)
    memory = cache.layers[layer - 1] if cache is not None else None
    if getattr(memory, "keys", None) is not None and memory.keys.shape[-2] == inputs["input_ids"].shape[1]:
        keys = memory.keys[0].transpose(0, 1).flatten(1)
        if keys.shape[1] == tokens.rotated_keys.shape[1]:
            torch.testing.assert_close(tokens.rotated_keys, keys[places], atol=1e-6, rtol=0)
            torch.testing.assert_close(tokens.text_rotated_keys, keys[words], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_next_attention_is_what_the_layer_then_has(name):
    one = specimen(name, "eager")
    layer = first_layer_of(one.model)
    found = try_shown(one, "next_attention", layer)
    if isinstance(found, str):
        assert not attends(decoder_layers(one.model)[layer]) or "streams" in found or name == "llama4", found
        return
    (tokens,), inputs, _ = found
    places, _ = places_of(one, layer, inputs)
    with torch.no_grad():
        out = one.model(**inputs, output_attentions=True)
    probabilities = [each for each in out.attentions if each is not None]
    if len(probabilities) == len(decoder_layers(one.model)):
        torch.testing.assert_close(
            tokens.next_attention, probabilities[layer][0, :, -1, places].float(), atol=2e-5, rtol=0
        )
    assert tokens.next_attention.shape[1] == len(places)


@pytest.mark.parametrize("name", NAMES)
def test_affinity_is_had_or_refused(name):
    """Where layer 0 attends, and is handed position embeddings that can be left out."""
    one = specimen(name)
    found = try_shown(one, "affinity", first_layer_of(one.model))
    if isinstance(found, str):
        reason = {"llama4": "position embeddings", "gemma3n": "before it runs"}.get(name, "queries and keys of its own")
        assert reason in found
        assert "divprune" in found
        return
    (tokens,), *_ = found
    assert tokens.affinity.shape[2] == len(tokens)
    assert torch.isfinite(tokens.affinity).all()


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "mistral3"])
def test_affinity_is_queries_times_keys_without_position(name):
    one = specimen(name)
    (tokens,), *_ = shown(one, "affinity+features", first_layer_of(one.model))
    layer = decoder_layers(one.model)[0]
    attention, width = layer.self_attn, layer.self_attn.head_dim
    with torch.no_grad():
        words, pictures = (layer.input_layernorm(each) for each in (tokens.text, tokens.features))
        query = attention.q_proj(words).view(len(words), -1, width)
        key = attention.k_proj(pictures).view(len(pictures), -1, width)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        by_hand = torch.einsum("thd,nhd->htn", query.double(), key.double()) / width**0.5
    torch.testing.assert_close(tokens.affinity.double(), by_hand, atol=1e-4, rtol=1e-4)


def test_rows_of_a_batch_are_those_of_each_prompt_alone():
    """Of different lengths and numbers of pictures, padded on the left."""
    one = specimen("llava")
    together, inputs, _ = shown(one, "rows+attention+features+affinity+next_attention+text_hidden", 2, 2, 0, 1)
    mask = inputs["attention_mask"]
    assert len(together) == 3
    pool = one.pictures(3)
    texts = one.texts(2, 0, 1)
    alone = []
    for text, images in ((texts[0], pool[:2]), (texts[2], pool[2:])):
        SHOWN.clear()
        with (
            torch.no_grad(),
            adaptprune.prune(
                one.model, Spy(cue="rows+attention+features+affinity+next_attention+text_hidden", keep_ratio=0.5)
            ),
        ):
            one.model(**one.read([text], [images]))
        alone += SHOWN
    assert (mask == 0).any()
    for first, second in zip(together, alone, strict=True):
        for cue in ("rows", "attention", "features", "text", "affinity", "next_attention", "text_hidden", "hidden"):
            torch.testing.assert_close(getattr(first, cue), getattr(second, cue), atol=2e-5, rtol=1e-4, msg=cue)


def test_what_cannot_be_remembered_is_not_chosen_anew():
    model = specimen("llava").model
    with pytest.raises(CannotReselect, match="'spy' looks at rows: start a new cache"):
        adaptprune.prune(model, Spy(cue="rows"), reselect=True)
    with adaptprune.prune(model, Spy(cue="+".join(sorted(REMEMBERED))), reselect=True):
        pass


def test_a_memo_is_kept_from_stage_to_stage_of_one_prompt():
    one = specimen("llava")
    notes = []

    @dataclass(frozen=True)
    class Twice(Pruner):
        name = "twice"

        def stages(self, num_layers):
            return (1, 3)

        def counts(self, size, num_layers):
            return {1: size // 2, 3: size // 4}

        def select(self, tokens, num_keep):
            notes.append((tokens.layer, len(tokens), tokens.whole, dict(tokens.memo)))
            tokens.memo[tokens.layer] = len(tokens)
            return torch.arange(num_keep)

    with torch.no_grad(), adaptprune.prune(one.model, Twice()) as report:
        one.model(**one.inputs(1, 1))
        one.model(**one.inputs(1))
    assert notes == [(1, 16, 16, {}), (1, 16, 16, {}), (3, 8, 16, {1: 16}), (3, 8, 16, {1: 16}),
                     (1, 16, 16, {}), (3, 8, 16, {1: 16})]  # fmt: skip
    assert report.num_kept == 4


def test_what_was_asked_and_what_was_kept():
    """PruneReport tells both, and what the layers read in the mean: 16 tokens, then 8, then 4, in 6 layers."""
    one = specimen("llava")

    @dataclass(frozen=True)
    class Few(Pruner):
        name = "few"
        adaptive = True
        keep_ratio: float = 0.5

        def stages(self, num_layers):
            return (1, 3)

        def counts(self, size, num_layers):
            return {1: size // 2, 3: size // 2}

        def select(self, tokens, num_keep):
            return torch.arange(num_keep if tokens.layer == 1 else 4)

    with torch.no_grad(), adaptprune.prune(one.model, Few()) as report:
        one.model(**one.inputs(1, 0, 2))
    assert [(each.num_visual, each.num_asked, each.num_kept) for each in report.samples] == [
        (16, 8, 4),
        (0, 0, 0),
        (32, 16, 8),
    ]
    assert [each.mean_kept for each in report.samples] == [(16 + 2 * 8 + 3 * 4) / 6, 0, 2 * (16 + 2 * 8 + 3 * 4) / 6]
    assert report.to_dict()["num_asked"] == 24
    assert report.stages == [1, 3]
    assert "kept 12 of 48 visual tokens (asked: 24; mean over layers: 22)" in str(report)
