"""Pictures put into a prompt by the caller, in odd orders: kept, repeated, swapped, altered, over a cache."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams.parts import takes_ready
from adaptprune.testing.oracle import hiding
from tests.asking import KEPT, close, far, generate, pruning, said, shared
from tests.embedded import decoder, embed, features, merged
from tests.families import specimen
from tests.tiny import IMAGE, RUN, batch, dropped, prompt

RULES = pytest.mark.parametrize("spec", ["fastv", "adaptprune", "random:layer=0", "grid:layer=3", "pool"])


def placed(model, ids, *pictures):
    states = embed(model, ids)
    states[ids == IMAGE] = torch.cat(pictures)
    return states


@RULES
@torch.no_grad()
def test_every_rule_gives_what_it_gives_for_ids(spec):
    model, inputs = shared(), batch(prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4))
    with pruning(model, spec) as report:
        states = merged(model, inputs, IMAGE)
        found = model(inputs_embeds=states, attention_mask=inputs["attention_mask"]).logits
        described = said(report)
        assert [sample.num_kept for sample in report.samples] == [KEPT, 2 * KEPT, 0]
        close(found, model(**inputs).logits)
        assert said(report) == described
        pixels = {"attention_mask": inputs["attention_mask"], "pixel_values": inputs["pixel_values"]}
        close(model(inputs_embeds=embed(model, inputs["input_ids"]), **pixels).logits, found)
        assert said(report) == described
    assert far(found[:, -1], model(**inputs).logits[:, -1])


@torch.no_grad()
def test_a_picture_is_encoded_once_and_asked_about_twice():
    model, questions = shared(), [prompt(1, 9), prompt(1, 14, 3)]
    pixels = batch(prompt(1, 9))["pixel_values"]
    with pruning(model, "fastv") as report:
        tokens = features(model, {"pixel_values": pixels})
        for _ in range(2):
            for question in questions:
                found = model(inputs_embeds=placed(model, question[None], tokens)).logits
                described = said(report)
                close(found, model(input_ids=question[None], pixel_values=pixels).logits)
                assert said(report) == described


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0), (1, 1, 0)])
@torch.no_grad()
def test_pictures_in_any_order(order):
    """Tiles say which picture is which: the report has the grids in the order of the prompt."""
    one = specimen("llava_next")
    singles = [one.read(one.texts(1, seed=number), [[picture]]) for number, picture in enumerate(one.pictures(2))]
    pictures = [one.pictures(2)[number] for number in order]
    whole = one.read(one.texts(len(order)), [pictures])
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3) as report:
        tokens = [features(one.model, single) for single in singles]
        counts = [len(tokens[number]) for number in order]
        assert sum(counts) == int((whole["input_ids"] == IMAGE_OF_ZOO).sum())
        states = merged(one.model, whole, IMAGE_OF_ZOO, torch.cat([tokens[number] for number in order]))
        found = one.model(inputs_embeds=states).logits
        described = said(report)
        close(found[:, -1], one.model(**whole).logits[:, -1])
    assert said(report)["samples"] == described["samples"]
    assert len(set(report.samples[0].grids)) > 1


IMAGE_OF_ZOO = specimen("llava_next").image_token_id


@pytest.mark.parametrize("how", ["one of two", "noise", "the last row", "shuffled", "too few", "a row twice"])
@torch.no_grad()
def test_what_is_not_wholly_known_is_refused(how):
    """A picture that was not encoded under the context, wholly or in part, or that is not there in full."""
    model, inputs = shared(), batch(prompt(2, 10))
    ids = inputs["input_ids"]
    before = features(model, inputs)
    with pruning(model, "random") as report:
        if how == "one of two":
            tokens = torch.cat([features(model, {"pixel_values": inputs["pixel_values"][:1]}), before[RUN:] + 0.01])
        else:
            tokens = features(model, inputs)
        if how == "noise":
            tokens = tokens + 0.05 * torch.randn_like(tokens)
        elif how == "the last row":
            tokens[-1] += 0.5
        elif how == "shuffled":
            tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
        elif how == "a row twice":
            tokens[5] = tokens[4]
        states = placed(model, ids, tokens)
        if how == "too few":
            states = torch.cat([states[:, :10], states[:, 12:]], dim=1)
        with pytest.raises(AdaptPruneError):
            model(inputs_embeds=states)
        assert report.prompts == 0
        close(model(**inputs).logits, model(inputs_embeds=placed(model, ids, features(model, inputs))).logits)


@torch.no_grad()
def test_placeholders_that_no_picture_was_encoded_for_are_words_in_either_form():
    """To stock transformers too; the report says that there was no image."""
    model, inputs = shared(), batch(prompt(1, 9))
    plain = model(input_ids=inputs["input_ids"]).logits
    with pruning(model, "random") as report:
        features(model, inputs)
        for call in ({"input_ids": inputs["input_ids"]}, {"inputs_embeds": embed(model, inputs["input_ids"])}):
            assert torch.equal(model(**call).logits, plain)
            assert (report.num_visual, report.num_kept) == (0, 0)


@pytest.mark.parametrize("reselect", [False, True], ids=["once", "reselect"])
@pytest.mark.parametrize("spec", ["fastv", "random:layer=0"])
@torch.no_grad()
def test_a_conversation_by_embeddings(spec, reselect):
    """Two turns with a picture each and one of words, over one cache."""
    model = shared()
    turns = [batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2), batch(prompt(0, 5, 9))]

    def talk(embedded: bool):
        cache, found = None, []
        with pruning(model, spec, reselect=reselect) as report:
            for turn in turns:
                call = {"input_ids": turn["input_ids"], **{k: v for k, v in turn.items() if k == "pixel_values"}}
                if embedded and "pixel_values" in turn:
                    call = {"inputs_embeds": merged(model, turn, IMAGE)}
                elif embedded:
                    call = {"inputs_embeds": embed(model, turn["input_ids"])}
                out = model(**call, past_key_values=cache)
                cache = out.past_key_values
                found.append((out.logits[:, -1], said(report)))
        return found

    for (found, described), (expected, other) in zip(talk(True), talk(False), strict=True):
        close(found, expected)
        assert described == other


@torch.no_grad()
def test_the_decoder_alone_over_a_cache():
    model, inputs = shared(), batch(prompt(1, 9))
    alone, token = decoder(model), torch.tensor([[7]])
    with pruning(model, "fastv") as report:
        states = merged(model, inputs, IMAGE)
        out = alone(inputs_embeds=states, use_cache=True)
        later = alone(input_ids=token, past_key_values=out.past_key_values).last_hidden_state
        embedded = alone(inputs_embeds=states, use_cache=True)
        again = alone(inputs_embeds=embed(model, token), past_key_values=embedded.past_key_values).last_hidden_state
    assert report.kv_lengths == [9 + RUN] * 2 + [9 + KEPT] * 3
    close(later, again)
    with hiding(model, 2, dropped(report, inputs)):
        full = alone(inputs_embeds=states, use_cache=True)
        close(later, alone(input_ids=token, past_key_values=full.past_key_values).last_hidden_state)


@torch.no_grad()
def test_embeddings_are_left_as_they_were():
    """What the caller handed over is not written to."""
    model, inputs = shared(), batch(prompt(1, 9))
    for spec in ("random:layer=0", "pool:layer=0", "adaptprune"):
        with pruning(model, spec):
            states = merged(model, inputs, IMAGE)
            before = states.clone()
            model(inputs_embeds=states)
            assert torch.equal(states, before)


@torch.no_grad()
def test_beams_from_embeddings():
    # before 5.18 transformers mixes up the pictures of beams if a prompt has several
    model, inputs = shared(), batch(prompt(1, 9), prompt(2 if takes_ready(shared()) else 1, 14, 3))
    options = {"max_new_tokens": 4, "num_beams": 3, "attention_mask": inputs["attention_mask"]}
    with pruning(model, "fastv"):
        expected = model.generate(**inputs, **{k: v for k, v in options.items() if k != "attention_mask"})
        states = merged(model, inputs, IMAGE)
        assert torch.equal(model.generate(inputs_embeds=states, **options), expected[:, -4:])
        ids = embed(model, inputs["input_ids"])
        found = model.generate(inputs_embeds=ids, pixel_values=inputs["pixel_values"], **options)
        assert torch.equal(found, expected[:, -4:])


def test_training_by_embeddings():
    """The loss counts positions of the prompt, and gradients reach what was put in."""
    model, inputs = shared(), batch(prompt(1, 9))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)

    def step(embedded: bool):
        model.zero_grad()
        if embedded:
            loss = model(inputs_embeds=merged(model, inputs, IMAGE), labels=labels).loss
        else:
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        return loss.detach(), model.model.multi_modal_projector.linear_1.weight.grad.clone()

    with pruning(model, "adaptprune"):
        found, expected = step(True), step(False)
    model.zero_grad()
    close(found[0], expected[0])
    close(found[1], expected[1])
    assert expected[1].abs().sum() > 0


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("when", ["before generate()", "within generate()"])
@torch.no_grad()
def test_a_second_prompt_by_embeddings_while_generating(when, use_cache):
    """Its picture is encoded and put in by the processor itself."""
    model, inputs, second = shared(), batch(prompt(1, 12)), batch(prompt(1, 20, 7), seed=9)
    found = []

    def processor(ids, scores):
        tokens = ahead if when == "before generate()" else features(model, second)
        found.append(model(inputs_embeds=placed(model, second["input_ids"], tokens)).logits)
        return scores

    with pruning(model, "fastv") as report:
        ahead = features(model, second) if when == "before generate()" else None
        words, logits = generate(model, inputs, processor, use_cache=use_cache)
        expected = model(**second).logits
    with pruning(model, "fastv") as report:
        generate(model, inputs, use_cache=use_cache)
    with hiding(model, 2, dropped(report, inputs)):
        full, hidden = generate(model, inputs, use_cache=use_cache)
    close(logits, hidden)
    assert torch.equal(words, full)
    assert len(found) == 4
    for each in found:
        close(each, expected)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@torch.no_grad()
def test_a_second_prompt_with_features_while_generating(use_cache):
    """Tiles of another size, encoded by the processor and handed on ready: each prompt keeps its own places."""
    one = specimen("llava_next")
    if not takes_ready(one.model):
        pytest.skip("before 5.18, models of transformers take no features")
    inputs, second = one.read(one.texts(1), [one.pictures(1)]), one.read(one.texts(1), [one.pictures(2)[1:]])
    found = []

    def processor(ids, scores):
        encoded = one.model.model.get_image_features(second["pixel_values"], second["image_sizes"])
        given = {"input_ids": second["input_ids"], "mm_encoder_outputs": {"image": encoded}}
        found.append(one.model(**given).logits)
        return scores

    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3) as report:
        words, logits = generate(one.model, inputs, processor, use_cache=use_cache)
        described = said(report)
        line, alone = generate(one.model, inputs, use_cache=use_cache)
        assert said(report) == described
        close(logits, alone)
        assert torch.equal(words, line)
        expected = one.model(**second).logits
    assert expected.shape != one.model(**second).logits.shape
    for each in found:
        close(each, expected)
