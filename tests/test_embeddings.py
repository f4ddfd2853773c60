"""Embeddings in place of ids, with pixels beside them or with the pictures already put in, for every family."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from adaptprune import AdaptPruneError
from adaptprune.hooks.seams import parts_of
from adaptprune.testing.zoo import SPECIMENS
from tests.asking import close, far
from tests.embedded import by_ids, decoder, embed, encoded, fresh, generates, merged, plain, rest, seeing
from tests.families import FAMILY, first_layer, generate, gone, oracle, pruned

#: What a caller cannot put in place of placeholders: these models do more with pictures than that.
MORE = {
    "llama4": "its features are projected by its forward",
    "granite4_vision": "its features are added at several layers",
    "gemma4": "its layers' inputs are looked up from ids, and stock transformers refuses other embeddings",
    "molmo2": "its features are added to the embeddings of placeholders",
}
PUT_IN = pytest.mark.parametrize("family", [name for name in SPECIMENS if name not in MORE])


def skip_without_generate(one) -> None:
    if not generates(one.model):
        pytest.skip("stock generate() takes no inputs_embeds for this model")


def ids_give(one, family, inputs):
    """The same prompt as ids: last logits, and the report."""
    with pruned(one, family) as report:
        return one.model(**inputs).logits[:, -1], report


def same(report, other) -> None:
    for a, b in zip(report.samples, other.samples, strict=True):
        assert (a.kept, a.cells, a.images, a.grids) == (b.kept, b.cells, b.images, b.grids)
    assert report.kv_lengths == other.kv_lengths
    assert report.kv_bytes == other.kv_bytes


@FAMILY
@torch.no_grad()
def test_embeddings_and_pixels(family):
    one = seeing(family)
    inputs, layer = one.inputs(1, 2, 0), first_layer(family)
    call = {"inputs_embeds": embed(one.model, inputs["input_ids"]), **rest(inputs)}
    if family == "llama4":  # nor unpruned
        with pytest.raises(ValueError, match="cannot specify both pixel_values and inputs_embeds"):
            one.model(**call)
        return
    with pruned(one, family) as report:
        logits = fresh(one.model)(**call).logits
    assert logits.shape[1] < inputs["input_ids"].shape[1]
    assert [len(sample.images) for sample in report.samples] == [1, 2, 0]
    assert [kept for sample in report.samples for _, kept in sample.images] == [
        max(1, int(0.3 * count)) for sample in report.samples for count, _ in sample.images
    ]
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        close(logits[:, -1], fresh(one.model)(**call).logits[:, -1])
    if not by_ids(one.model):
        expected, other = ids_give(one, family, inputs)
        close(logits[:, -1], expected)
        same(report, other)


def equals_the_oracle(one, family, inputs, call, report, words, logits):
    """What `generate(one, call)` gave under pruning is what the unpruned model gives with the dropped tokens hidden."""
    assert report.num_kept < report.num_visual
    with oracle(one, inputs, first_layer(family), gone(one, inputs, report)):
        full, expected = generate(one, call)
    close(logits, expected)
    assert torch.equal(words, full)


@FAMILY
@torch.no_grad()
def test_generating_from_embeddings_and_pixels(family):
    one = seeing(family)
    skip_without_generate(one)
    inputs = one.inputs(1, 2, 0)
    call = {"inputs_embeds": embed(one.model, inputs["input_ids"]), **rest(inputs)}
    with pruned(one, family) as report:
        words, logits = generate(one, call)
        if not by_ids(one.model):
            line, expected = generate(one, inputs)
            close(logits, expected)
            assert torch.equal(words, line[:, -words.shape[1] :])
    equals_the_oracle(one, family, inputs, call, report, words, logits)


@PUT_IN
@torch.no_grad()
def test_pictures_put_in_by_the_caller(family):
    """Through the model and through its decoder alone."""
    one = seeing(family)
    inputs, layer = one.inputs(1, 2, 0), first_layer(family)
    length = inputs["input_ids"].shape[1]
    alone = decoder(one.model)
    with pruned(one, family) as report:
        states = merged(one.model, inputs, one.image_token_id)
        logits = fresh(one.model)(inputs_embeds=states.clone(), **plain(inputs)).logits
        hidden = gone_of(report), report.kv_lengths
        found = alone(inputs_embeds=states.clone(), attention_mask=inputs["attention_mask"]).last_hidden_state
        assert gone_of(report)[0] is not None
    assert logits.shape[1] < length
    assert found.shape[1] < length
    dropped = gone(one, inputs, report)
    assert [len(row) > 0 for row in dropped] == [True, True, False]
    with oracle(one, inputs, layer, dropped):
        full = alone(inputs_embeds=states.clone(), attention_mask=inputs["attention_mask"]).last_hidden_state
    close(found[:, -1], full[:, -1])
    with pruned(one, family) as report:
        fresh(one.model)(inputs_embeds=merged(one.model, inputs, one.image_token_id), **plain(inputs))
    assert (gone_of(report), report.kv_lengths) == hidden
    with oracle(one, inputs, layer, gone(one, inputs, report)):
        close(logits[:, -1], fresh(one.model)(inputs_embeds=states.clone(), **plain(inputs)).logits[:, -1])
    if not by_ids(one.model):
        expected, other = ids_give(one, family, inputs)
        close(logits[:, -1], expected)
        same(report, other)


def gone_of(report):
    return [sample.kept for sample in report.samples]


@PUT_IN
@torch.no_grad()
def test_generating_from_pictures_put_in_by_the_caller(family):
    one = seeing(family)
    skip_without_generate(one)
    inputs = one.inputs(1, 2, 0)
    with pruned(one, family) as report:
        call = {"inputs_embeds": merged(one.model, inputs, one.image_token_id), **plain(inputs)}
        words, logits = generate(one, call)
        described = gone_of(report)
        if not by_ids(one.model):
            line, expected = generate(one, inputs)
            close(logits, expected)
            assert torch.equal(words, line[:, -words.shape[1] :])
            assert gone_of(report) == described
    equals_the_oracle(one, family, inputs, call, report, words, logits)


@PUT_IN
@torch.no_grad()
def test_features_from_before_the_context_are_refused(family):
    """They look like any embeddings: to leave them unpruned would be silent."""
    one = seeing(family)
    inputs = one.inputs(1, 2)
    states = merged(one.model, inputs, one.image_token_id)
    alone = decoder(one.model)
    with pruned(one, family):
        with pytest.raises(AdaptPruneError):
            fresh(one.model)(inputs_embeds=states.clone(), **plain(inputs))
        with pytest.raises(AdaptPruneError):
            alone(inputs_embeds=states.clone(), attention_mask=inputs["attention_mask"])
        if generates(one.model):
            with pytest.raises(AdaptPruneError):
                fresh(one.model).generate(inputs_embeds=states.clone(), **plain(inputs), max_new_tokens=2)
        one.model(**inputs)  # and nothing of it is left


@FAMILY
@torch.no_grad()
def test_words_alone(family):
    one = seeing(family)
    ids = torch.tensor([[60, 61, 62, 63, 64, 65]])
    states, alone = embed(one.model, ids), decoder(one.model)
    call = {"inputs_embeds": states, "attention_mask": torch.ones_like(ids)}
    expected = fresh(one.model)(**call).logits, alone(**call).last_hidden_state
    with pruned(one, family) as report:
        encoded(one.model, one.inputs(1))  # a picture that no prompt shows
        assert torch.equal(fresh(one.model)(**call).logits, expected[0])
        assert (report.num_visual, report.num_kept, report.prompts) == (0, 0, 1)
        assert torch.equal(alone(**call).last_hidden_state, expected[1])
        assert (report.num_visual, report.num_kept) == (0, 0)
        if generates(one.model):
            words = one.model.generate(**call, max_new_tokens=3, do_sample=False)
    if generates(one.model):
        assert torch.equal(words, one.model.generate(**call, max_new_tokens=3, do_sample=False))


@FAMILY
@pytest.mark.parametrize("start", ["ids", "merged"])
@torch.no_grad()
def test_single_tokens_by_embeddings(family, start):
    """Each step of a decode loop hands over the embedding of one token."""
    one = seeing(family)
    if start == "merged" and family in MORE:
        pytest.skip(MORE[family])
    inputs = one.inputs(1, 2)
    tokens = torch.randint(60, 90, (2, 3), generator=torch.Generator().manual_seed(2))

    def steps(embedded: bool):
        call = inputs if start == "ids" else plain(inputs)
        if start == "merged":
            call = {**call, "inputs_embeds": merged(one.model, inputs, one.image_token_id)}
        cache = DynamicCache(config=one.model.config.get_text_config())
        fresh(one.model)(**call, past_key_values=cache)
        mask, found = inputs["attention_mask"], []
        for step in range(3):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            ids = tokens[:, step : step + 1]
            key = {"inputs_embeds": embed(one.model, ids)} if embedded else {"input_ids": ids}
            place = (mask.cumsum(dim=-1) - 1)[:, -1:]  # Qwen's stock models do not count a loop's steps themselves
            axes = {"hunyuan_vl": 4}.get(family, 3)
            place = place.expand(axes, -1, -1) if hasattr(parts_of(one.model).base, "get_rope_index") else place
            out = one.model(**key, attention_mask=mask, position_ids=place, past_key_values=cache)
            found.append(out.logits[:, -1])
        return found

    with pruned(one, family) as report:
        by_embeddings = steps(True)
        assert report.prompts == 1
        if family != "gemma3n":  # its layers have inputs from ids
            close(by_embeddings, steps(False))
    with oracle(one, inputs, first_layer(family), gone(one, inputs, report)):
        close(by_embeddings, steps(family == "gemma3n"))
    assert far(by_embeddings, steps(True))  # unpruned
