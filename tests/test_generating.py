"""Ways of generating and of spending the budget, on families of every kind of attention and layout."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams.parts import takes_ready
from adaptprune.hooks.seams.versions import reaches
from adaptprune.testing.oracle import decoder_layers
from adaptprune.testing.specimen import IMAGE
from tests.asking import far
from tests.families import (
    ANEW_LACKS,
    BIDIRECTIONAL,
    FAMILY,
    FIXED,
    KIND,
    KINDS,
    MIXES_ROWS,
    MIXES_SEQUENCES,
    NO_DRAFTS,
    SPECIMENS,
    TOLERANCE,
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
from tests.tiny import batch, llava, prompt


@KIND
@torch.no_grad()
def test_a_count_in_place_of_a_ratio(family):
    one = specimen(family)
    inputs, layer = one.inputs(1, 2), first_layer(family)
    with adaptprune.prune(one.model, **suiting(family), num_keep=5) as report:
        words, logits = generate(one, inputs)
        assert "num_keep=5" in report.method
    counts = [(count, kept) for sample in report.samples for count, kept in sample.images]
    assert [kept for _, kept in counts] == [min(5, count) for count, _ in counts]
    assert len(counts) == 3
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)
    with adaptprune.prune(one.model, "random", num_keep=1000, layer=layer) as report:  # more than there are
        again, _ = generate(one, inputs)
    assert report.num_kept == report.num_visual
    assert torch.equal(again, generate(one, inputs)[0])


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "smolvlm"])
@pytest.mark.parametrize("budget", ["image", "grid", "joint"])
@torch.no_grad()
def test_what_shares_a_budget(family, budget):
    one = specimen(family)
    inputs, layer = one.inputs(1, 2), first_layer(family)
    with pruned(one, family, budget=budget) as report:
        _, logits = generate(one, inputs)
    for sample in report.samples:
        sizes = [rows * columns for _, rows, columns in sample.grids]
        kept = [sum(cell[0] == grid for cell in sample.cells) for grid in range(len(sizes))]
        if budget == "grid":
            assert kept == [max(1, int(0.3 * size)) for size in sizes]
        elif budget == "image":
            assert [n for _, n in sample.images] == [max(1, int(0.3 * size)) for size, _ in sample.images]
        else:
            assert sample.num_kept == int(0.3 * sample.num_visual)
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        _, expected = generate(one, inputs)
    equal(logits, expected)


def test_budgets_that_are_not():
    model = specimen("llava").model
    with pytest.raises(AdaptPruneError, match="keep_ratio=0.5 and num_keep=7 are two ways"):
        adaptprune.prune(model, "random", keep_ratio=0.5, num_keep=7)
    with pytest.raises(AdaptPruneError, match="num_keep=0 is not allowed"):
        adaptprune.prune(model, "random", num_keep=0)
    with pytest.raises(AdaptPruneError, match="unknown budget='images'. Did you mean 'image'"):
        adaptprune.prune(model, "random", budget="images")


@FAMILY
@torch.no_grad()
def test_eviction_below(family):
    """The prompt sees everything below layer K, what is generated sees kept tokens only, in every layer."""
    one = specimen(family)
    inputs, layer = one.inputs(1, 2, 0), first_layer(family)
    with pruned(one, family, evict_below=True) as report:
        words, logits = generate(one, inputs)
    windows = [
        getattr(each, "sliding_window", None) for each in DynamicCache(config=one.model.config.get_text_config()).layers
    ]
    held = {n for n, window in zip(report.kv_lengths, windows, strict=False) if n and window is None}
    assert len(held) <= 1  # sliding layers hold what is in their window, others all that is kept
    assert max(held, default=0) < inputs["input_ids"].shape[1]
    with oracle(one, inputs, layer, gone(one, inputs, report), decode_from=0):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)


def follow(one, first, answer, seed: int = 3):
    """A second turn of text for every row: the whole conversation, and its mask."""
    more = torch.randint(60, 90, (len(answer), 6), generator=torch.Generator().manual_seed(seed))
    ids = torch.cat([answer, more], dim=1)
    new = ids.shape[1] - first["attention_mask"].shape[1]
    return ids, torch.nn.functional.pad(first["attention_mask"], (0, new), value=1)


CHOOSING = [name for name in SPECIMENS if name not in (*FIXED, *ANEW_LACKS)]


@pytest.mark.parametrize(
    ("family", "attention", "keys"),
    [
        *((name, "sdpa", None) for name in CHOOSING),
        *((name, "eager", "previous") for name in KINDS.values() if name in CHOOSING),
    ],
)
@torch.no_grad()
def test_choosing_anew_at_every_turn(family, attention, keys):
    """A later turn with reselect=True equals the whole conversation read into a new cache."""
    one, options = specimen(family, attention), {"keys": keys} if keys else {}
    first = one.inputs(1, 1) if family in MIXES_ROWS else one.inputs(1, 2)
    with pruned(one, family, **options, reselect=True) as report:
        turn = said(one, first)
        before = [list(sample.kept) for sample in report.samples]
        cache = turn.past_key_values
        for seed in (3, 4):
            ids, mask = follow(one, first, turn.sequences, seed)
            turn = said(one, {"input_ids": ids, "attention_mask": mask, "past_key_values": cache})
        chosen = [list(sample.kept) for sample in report.samples]
        lengths = report.kv_lengths
    assert chosen != before
    with pruned(one, family, **options) as report:
        fresh = said(one, extended(first, ids, mask))
    equal(torch.stack(turn.logits), torch.stack(fresh.logits))
    assert torch.equal(turn.sequences, fresh.sequences)
    assert chosen == [sample.kept for sample in report.samples]
    assert lengths == report.kv_lengths


def said(one, inputs, steps: int = 4):
    """What `generate()` gives for a turn, all of it."""
    return one.model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
    )


@pytest.mark.parametrize("family", FIXED)
def test_who_cannot_choose_anew(family):
    why = "needs causal attention" if family in BIDIRECTIONAL else "layers that share keys or remember in another way"
    with pytest.raises(AdaptPruneError, match=f"reselect=True.*{why}.*start a new cache at every turn"):
        pruned(specimen(family), family, "random", reselect=True)


@pytest.mark.parametrize("family", ANEW_LACKS)
@torch.no_grad()
def test_who_is_found_not_to_choose_anew_by_the_first_prompt(family):
    one = specimen(family)
    with (
        pruned(one, family, reselect=True),
        pytest.raises(AdaptPruneError, match=f"reselect=True.*{ANEW_LACKS[family]}.*start a new cache at every turn"),
    ):
        one.model(**one.inputs(1))
    with pruned(one, family) as report:
        one.model(**one.inputs(1))
    assert report.num_kept < report.num_visual


def test_what_cannot_choose_anew():
    with pytest.raises(AdaptPruneError, match="reselect=True needs the keys that evict_below=True drops"):
        adaptprune.prune(specimen("llava").model, "random", reselect=True, evict_below=True)


@FAMILY
@pytest.mark.parametrize("evict_below", [False, True])
@torch.no_grad()
def test_a_turn_of_text_over_a_kept_cache(family, evict_below):
    """Old tokens stay as they were chosen."""
    one = specimen(family)
    first, layer = one.inputs(1, 2), first_layer(family)
    with pruned(one, family, evict_below=evict_below) as report:
        turn = said(one, first)
        hidden = [list(row.kept) for row in report.samples]
        ids, mask = follow(one, first, turn.sequences)
        answer = said(one, {"input_ids": ids, "attention_mask": mask, "past_key_values": turn.past_key_values})
    hidden = [sorted(set(a) - set(b)) for a, b in zip(all_of(one, first), hidden, strict=True)]
    whole = {"input_ids": ids, "attention_mask": mask}
    with oracle(one, whole, layer, hidden, decode_from=0 if evict_below else None):
        turn = said(one, first)
        full = said(one, {**whole, "past_key_values": turn.past_key_values})
    equal(torch.stack(answer.logits), torch.stack(full.logits))
    assert torch.equal(answer.sequences, full.sequences)


@FAMILY
@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5, "num_return_sequences": 2}],
    ids=["beams", "sampling", "several"],
)
@torch.no_grad()
def test_beams_and_sampling(family, options):
    one = specimen(family)
    if MIXES_SEQUENCES.get(family):
        pytest.skip("stock transformers does not repeat its pictures: see below")
    inputs, layer = one.inputs(1, 1) if family in MIXES_SEQUENCES else one.inputs(1, 2), first_layer(family)
    if not takes_ready(one.model):
        inputs = one.inputs(1, 1)
        if len(inputs.get("pixel_values", inputs["input_ids"])) > 2 and "image_grid_thw" not in inputs:
            pytest.skip("before 5.18, transformers mixes up the tiles of beams")
    with pruned(one, family) as report:
        one.model(**inputs)
        chosen = copy.deepcopy(report)  # with beams there is a row for each
        torch.manual_seed(0)
        words = one.model.generate(**inputs, max_new_tokens=5, **options)
    hidden = gone(one, inputs, chosen)
    torch.manual_seed(0)
    with oracle(one, inputs, layer, hidden):
        full = one.model.generate(**inputs, max_new_tokens=5, **options)
    assert words.tolist() == full.tolist()


@pytest.mark.parametrize("family", MIXES_SEQUENCES)
@torch.no_grad()
def test_why_some_sequences_are_not_compared(family):
    """Unpruned, sequences of one prompt differ from the first token on, or there are none."""
    one = specimen(family)
    call = {"max_new_tokens": 1, "do_sample": True, "num_return_sequences": 2, "return_dict_in_generate": True}
    if MIXES_SEQUENCES[family]:
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            one.model.generate(**one.inputs(1, 2), **call)
        return
    (logits,) = one.model.generate(**one.inputs(1, 2), **call, output_logits=True).logits
    assert far(logits[2], logits[3])


@KIND
@torch.no_grad()
def test_assisted_decoding_gives_the_greedy_answer(family):
    one = specimen(family)
    inputs, draft = one.inputs(1), copy.deepcopy(one.model)
    torch.manual_seed(0)
    for parameter in list(draft.parameters())[-8:]:
        parameter.data += 0.05 * torch.randn_like(parameter)  # right now and then
    if not reaches("5.20.2") and family not in NO_DRAFTS:
        try:
            one.model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=draft)
        except RuntimeError as error:  # of windows that were rolled back
            pytest.skip(f"stock generate() of this release fails with a draft of this model: {error}")
    if family in NO_DRAFTS:  # nor unpruned
        with pytest.raises((ValueError, IndexError), match=NO_DRAFTS[family]):
            one.model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=draft)
        return
    with pruned(one, family):
        greedy = one.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        lookup = one.model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        assisted = one.model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=draft)
    assert torch.equal(lookup, greedy)
    assert torch.equal(assisted, greedy)


@pytest.mark.parametrize("words", [30, 48, 52])
@torch.no_grad()
def test_a_prompt_in_chunks_is_refused(words):
    """Whether a chunk cuts the picture or has all of it: what ranks its tokens is the prompt's last one."""
    model, inputs = llava(), batch(prompt(1, 20))
    with (
        adaptprune.prune(model, "fastv", keep_ratio=0.25),
        pytest.raises((AdaptPruneError, ValueError), match="prefill_chunk_size"),
    ):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=words)


@torch.no_grad()
def test_streaming():
    one = specimen("llava")
    inputs = one.inputs(1)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3):
        streamer = TextIteratorStreamer(one.processor.tokenizer, skip_prompt=True)
        words = one.model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=streamer)
        text = "".join(streamer)
    assert text.split() == one.processor.tokenizer.decode(words[0, -6:]).split()


@KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(family, dtype):
    one = specimen(family)
    model = copy.deepcopy(one.model).to(dtype)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in one.inputs(1, 2).items()}
    if family == "nemotron_h_omni":  # nor unpruned: the state space without its kernels computes in float32
        with pytest.raises(RuntimeError, match="same dtype"):
            model(**inputs)
        return
    with pruned(one, family, model=model) as report:
        logits = model(**inputs).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()
    assert [k for s in report.samples for _, k in s.images] == [
        int(0.3 * n) for s in report.samples for n, _ in s.images
    ]


VALUES = ("v_proj.weight", "kv_b_proj.weight", "k_proj.weight")


@FAMILY
def test_training_with_labels(family):
    """Loss and gradients are those of the oracle; labels keep the length of the prompt."""
    one = specimen(family)
    # in stock Gemma 3n, gradients are NaN as soon as a row is padded
    inputs, layer = one.inputs(2) if family == "gemma3n" else one.inputs(1, 2), first_layer(family)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    head = one.model.get_output_embeddings() or one.model.get_decoder().get_output_embeddings()
    weight = head.weight
    # whatever layer 1 makes its values from
    named = list(decoder_layers(one.model)[1].named_parameters())
    probe = next(each for name, each in named if name.endswith(VALUES))

    def step():
        one.model.zero_grad()
        loss = one.model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach(), probe.grad.clone(), weight.grad.clone()

    with pruned(one, family) as report:
        found = step()
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        expected = step()
    one.model.zero_grad()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=1e-3)


def test_a_dropped_place_predicts_by_the_last_kept_one():
    one = specimen("llava")
    inputs = one.inputs(1)
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.3) as report:
        short = one.model(**inputs).logits[0]
        full = one.model(**inputs, labels=inputs["input_ids"]).logits[0]
    hidden = set((inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()) - set(report.samples[0].kept)
    place, expected = -1, []
    for position in range(inputs["input_ids"].shape[1]):
        place += position not in hidden
        expected.append(short[place])
    torch.testing.assert_close(full, torch.stack(expected))
    last = torch.tensor([inputs["input_ids"].shape[1] - 1])
    with torch.no_grad(), adaptprune.prune(one.model, "random", keep_ratio=0.3):
        torch.testing.assert_close(one.model(**inputs, logits_to_keep=last).logits[0], full[-1:])


def test_gradient_checkpointing_is_refused():
    model = copy.deepcopy(specimen("llava").model).train()
    model.gradient_checkpointing_enable()
    with adaptprune.prune(model, "random"), pytest.raises(AdaptPruneError, match="gradient_checkpointing_disable"):
        model(**specimen("llava").inputs(1))


@torch.no_grad()
def test_caches_that_cannot_be_shortened_are_refused_by_name():
    one = specimen("llava")
    with adaptprune.prune(one.model, "random"):
        with pytest.raises(AdaptPruneError, match="StaticCache cannot be pruned.*use a dynamic cache"):
            one.model.generate(**one.inputs(1), max_new_tokens=3, cache_implementation="static")
        cache = DynamicCache(config=one.model.config.text_config)
        cache.layers[0].__class__ = type("OtherLayer", (type(cache.layers[0]),), {})
        with pytest.raises(AdaptPruneError, match="DynamicCache cannot be pruned, its OtherLayers"):
            one.model(**one.inputs(1), past_key_values=cache)
