"""What people do with a pruned model besides calling it: it goes on working, and nothing of it outlives the handle."""

from __future__ import annotations

import functools
import threading

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.testing.oracle import hiding
from tests.embedded import merged
from tests.tiny import CASES, IMAGE, batch, dropped, llava, prompt

TOLERANCE = 1e-4


def one() -> dict[str, torch.Tensor]:
    return CASES["one image"]()


def pruned(model, **options):
    return adaptprune.prune(model, "fastv", keep_ratio=0.25, **options)


def answer(model, **options):
    out = model.generate(**one(), max_new_tokens=4, output_logits=True, return_dict_in_generate=True, **options)
    return torch.stack(out.logits)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_methods_that_somebody_holds_on_to_do_nothing_after_the_end():
    model = llava()
    plain, image = answer(model), model.model.get_image_features(one()["pixel_values"]).pooler_output[0]
    with pruned(model):
        generate, prepare, encode = model.generate, model.prepare_inputs_for_generation, model.model.get_image_features
        pruned_answer = answer(model)
    assert not torch.equal(pruned_answer, plain)
    out = generate(**one(), max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(torch.stack(out.logits), plain)
    assert "input_ids" in prepare(one()["input_ids"])
    assert torch.equal(encode(one()["pixel_values"]).pooler_output[0], image)
    assert torch.equal(answer(model), plain)
    assert not {"generate", "prepare_inputs_for_generation"} & set(vars(model))


@torch.no_grad()
def test_wrappers_that_others_put_over_ours():
    model = llava()
    with pruned(model) as report:
        expected, seen = answer(model), []

        def over(module, name):
            ours = getattr(module, name)

            @functools.wraps(ours)
            def theirs(*args, **kwargs):
                seen.append(name)
                return ours(*args, **kwargs)

            setattr(module, name, theirs)

        over(model, "generate")
        over(model, "prepare_inputs_for_generation")
        over(model.model, "get_image_features")
        assert torch.equal(answer(model), expected)
        assert set(seen) == {"generate", "prepare_inputs_for_generation", "get_image_features"}
        assert report.num_kept == 9


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_forwards_that_read_copies(use_cache):
    """Somebody's hook moves or pads what goes in: the forward is still `generate()`'s own."""
    model = llava()
    with pruned(model) as report:
        expected = answer(model, use_cache=use_cache)
        hook = model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "input_ids": kwargs["input_ids"].clone()}), with_kwargs=True
        )
        assert torch.equal(answer(model, use_cache=use_cache), expected)
        hook.remove()
    with hiding(model, 2, dropped(report, one())):
        close(expected, answer(model, use_cache=use_cache))


@torch.no_grad()
def test_a_loop_of_the_callers_own():
    """`custom_generate` calls the model as it likes; every forward stands alone, as outside of `generate()`."""
    model, mask = llava(), one()["attention_mask"]

    def loop(model, input_ids, **kwargs):
        out = model(input_ids=input_ids, pixel_values=kwargs.get("pixel_values"), attention_mask=mask,
                    mm_encoder_outputs=kwargs.get("mm_encoder_outputs"))  # fmt: skip
        return out.logits

    with pruned(model) as report:
        expected = model(**one()).logits
        assert torch.equal(model.generate(**one(), custom_generate=loop, max_new_tokens=4), expected)
        assert report.num_kept == 9


@torch.no_grad()
def test_generate_of_before_is_refused_while_the_model_is_pruned():
    model = llava()
    generate = model.generate
    with pruned(model), pytest.raises(AdaptPruneError, match="looked up before the model was pruned"):
        generate(**one(), max_new_tokens=2)
    generate(**one(), max_new_tokens=2)


@torch.no_grad()
def test_another_models_generate_is_none_of_ours():
    """Its processor may prepare and ask this one."""
    model, other = llava(), llava(seed=1)
    with pruned(model):
        expected = model(**one()).logits
        found = []

        def processor(ids, scores):
            inputs = model.prepare_inputs_for_generation(one()["input_ids"], is_first_iteration=True, use_cache=False)
            found.append(model(**{**inputs, "pixel_values": one()["pixel_values"]}).logits)
            return scores

        other.generate(**one(), max_new_tokens=2, logits_processor=[processor])
    assert len(found) == 2
    close(found[0], expected)


@pytest.mark.parametrize("where", ["layer", "encoder"])
@torch.no_grad()
def test_after_an_interrupt_nothing_is_under_way(where):
    """Ctrl-C in the middle of a forward: torch does not run hooks for it."""
    model = llava()
    words = batch(prompt(0, 20))
    with pruned(model) as report:
        expected, text = model(**one()).logits, model.model.language_model(input_ids=words["input_ids"])[0]
        broken = model.model.language_model.layers[3] if where == "layer" else model.model.multi_modal_projector
        hook = broken.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model(**one(), labels=one()["input_ids"])
        hook.remove()
        embeds = model.get_input_embeddings()(words["input_ids"])
        assert torch.equal(model.model.language_model(inputs_embeds=embeds)[0], text)
        states = merged(model, one(), IMAGE)
        assert model.model.language_model(inputs_embeds=states)[0].shape[1] == expected.shape[1]
        assert model.model(**one())[0].shape[1] == expected.shape[1]
        assert torch.equal(model(**one()).logits, expected)
        assert report.num_kept == 9


@torch.no_grad()
def test_threads_that_encode_while_others_read_embeddings():
    model, words = llava(), batch(prompt(0, 20))
    embeds, failed, done = model.get_input_embeddings()(words["input_ids"]), [], threading.Event()
    with pruned(model):

        def encode():
            while not done.is_set():
                model.get_image_features(one()["pixel_values"])

        threads = [threading.Thread(target=encode) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                states = merged(model, one(), IMAGE)
                assert model(inputs_embeds=states).logits.shape[1] < states.shape[1]
                model(inputs_embeds=embeds)
        except RuntimeError as error:
            failed.append(error)
        done.set()
        for thread in threads:
            thread.join()
    assert not failed


@torch.no_grad()
def test_embeddings_whose_weights_have_changed():
    model = llava()
    ids = batch(prompt(0, 20))["input_ids"]
    with pruned(model):
        model(inputs_embeds=model.get_input_embeddings()(ids))
        model.get_input_embeddings().weight.data.mul_(1.01)  # which no version counter sees
        model(inputs_embeds=model.get_input_embeddings()(ids))


@torch.no_grad()
def test_padding_among_embeddings_may_be_anything():
    model, inputs = llava(), CASES["ragged left"]()
    with pruned(model) as report:
        expected = model(**inputs).logits
        states = model.get_input_embeddings()(inputs["input_ids"])
        states = merged(model, inputs, IMAGE)
        states[inputs["attention_mask"] == 0] = 0.5
        found = model(inputs_embeds=states, attention_mask=inputs["attention_mask"]).logits
        assert report.num_kept == 27
        close(found[:, -1], expected[:, -1])
        states[0, -1] = 0.5  # no padding
        with pytest.raises(AdaptPruneError, match="1 embeddings that are no token's"):
            model(inputs_embeds=states, attention_mask=inputs["attention_mask"])


@torch.no_grad()
def test_a_layer_called_by_hand():
    model = llava()
    decoder, states = model.model.language_model, torch.randn(1, 3, 64)
    pair = decoder.rotary_emb(states, torch.arange(3)[None])
    plain = decoder.layers[3](states, position_embeddings=pair)
    with pruned(model):
        assert torch.equal(decoder.layers[3](states, position_embeddings=pair), plain)
        assert model(**one()).logits.shape[1] == 18


@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices"])
@torch.no_grad()
def test_rows_that_change_places(change):
    """Rows that kept other tokens: what each of them holds goes with it, or the cache is refused."""
    model, inputs = llava(), CASES["same length, other image counts"]()
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], dim=1)
    token = torch.tensor([[7], [8]])
    with pruned(model):
        straight = model(input_ids=token, attention_mask=mask, past_key_values=model(**inputs).past_key_values).logits
        cache = model(**inputs).past_key_values
        getattr(cache, change)(torch.tensor([1, 0]))
        crossed = model(input_ids=token.flip(0), attention_mask=mask.flip(0), past_key_values=cache).logits
    close(crossed.flip(0), straight)


@torch.no_grad()
def test_fewer_rows_and_copies_of_rows():
    model, inputs = llava(), CASES["ragged left"]()
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)], dim=1)
    token = torch.tensor([[7], [8], [9]])
    with pruned(model):
        straight = model(input_ids=token, attention_mask=mask, past_key_values=model(**inputs).past_key_values).logits
        cache = model(**inputs).past_key_values
        cache.batch_select_indices(torch.tensor([2, 1]))
        cache.batch_repeat_interleave(2)
        rows = torch.tensor([2, 2, 1, 1])
        found = model(input_ids=token[rows], attention_mask=mask[rows], past_key_values=cache).logits
    close(found, straight[rows])


@torch.no_grad()
def test_drafts_and_eviction_exclude_each_other():
    model = llava()
    with pruned(model, evict_below=True):
        model.generate(**one(), max_new_tokens=3)
        with pytest.raises(AdaptPruneError, match="evict_below=True"):
            model.generate(**one(), max_new_tokens=3, assistant_model=llava(seed=3))
