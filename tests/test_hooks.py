"""What the hooks do to a model and leave behind: identity, costs, cache lengths, errors, threads."""

from __future__ import annotations

import copy
import threading
from collections import Counter

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.hooks.seams.parts import takes_ready
from tests.tiny import CASES, IMAGE, LAYERS, RUN, batch, llava, prompt

METHODS = adaptprune.list_methods()


def hooks_of(model) -> list:
    """Everything that pruning may leave on a model."""
    found = []
    for module in model.modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        # transformers puts hooks of its own on in the first forward, and leaves them there
        found += [hook for hook in hooks if not getattr(hook, "__module__", "").startswith("transformers.")]
        if "adaptprune" in str(getattr(getattr(module, "config", None), "_attn_implementation", "")):
            found.append(module.config)
    return found


#: Rules of each kind on every batch, the others on one.
KINDS = ("adaptprune", "fastv", "pool", "tops")
ONES = [(method, attention, case) for method in KINDS for attention in ("sdpa", "eager") for case in CASES]
ONES += [(method, "sdpa", "ragged left") for method in METHODS if method not in KINDS]


@pytest.mark.parametrize(("method", "attention", "case"), ONES)
@torch.no_grad()
def test_keep_ratio_one_is_bit_identical(method, attention, case):
    model, inputs = llava(attention), CASES[case]()
    plain, words = model(**inputs).logits, model.generate(**inputs, max_new_tokens=4)
    with adaptprune.prune(model, method, keep_ratio=1) as report:
        assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4), words)
    assert report.num_kept == report.num_visual == int((inputs["input_ids"] == IMAGE).sum())
    assert report.kv_bytes == report.kv_bytes_unpruned


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_after_pruning_the_model_is_as_before(method):
    model, inputs = llava(), CASES["ragged left"]()
    before, plain = hooks_of(model), model(**inputs).logits
    handle = adaptprune.prune(model, method)
    if method == "evs":  # for videos
        with pytest.raises(AdaptPruneError, match="evs compares frames"):
            model(**inputs)
        handle.remove()
        assert hooks_of(model) == before
        return
    assert not torch.equal(model(**inputs).logits[:, -1], plain[:, -1])
    assert hooks_of(model) != before
    handle.remove()
    handle.remove()  # again is harmless
    assert hooks_of(model) == before
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("layer", [1, 2, 4])
@torch.no_grad()
def test_cache_lengths_and_report(layer):
    model, inputs = llava(), CASES["two images"]()
    length = inputs["input_ids"].shape[1]
    with adaptprune.prune(model, "fastv", keep_ratio=0.3, layer=layer) as report:
        cache = model(**inputs).past_key_values
    kept = 2 * int(0.3 * RUN)
    assert report.kv_lengths == [length] * layer + [length - 2 * RUN + kept] * (LAYERS - layer)
    assert [c.keys.shape[-2] for c in cache.layers] == [c.values.shape[-2] for c in cache.layers] == report.kv_lengths
    assert report.kv_bytes == sum(c.keys.nbytes + c.values.nbytes for c in cache.layers)
    assert report.kv_bytes_unpruned == 2 * LAYERS * 2 * length * 16 * 4  # k and v, layers, heads, length, width, bytes
    (sample,) = report.samples
    assert (sample.num_visual, sample.num_kept, len(sample.kept)) == (2 * RUN, kept, kept)
    assert sample.images == [(RUN, kept // 2)] * 2
    assert sample.kept == sorted(set(sample.kept))
    assert (inputs["input_ids"][0, sample.kept] == IMAGE).all()
    assert report.attention_backend == "sdpa"
    assert report.selection_ms > 0
    assert report.to_dict()["num_kept"] == kept
    assert f"kept {kept} of {2 * RUN}" in str(report)


@pytest.mark.parametrize(
    ("spec", "extra"),
    [
        ("fastv", 0),
        ("random", 0),
        ("adaptprune:keys=previous", 0),
        ("adaptprune:keys=layer", 1),
        ("adaptprune:keys=reference", 1),
    ],
)
@torch.no_grad()
def test_no_layer_and_no_projection_runs_twice(spec, extra):
    """Each layer runs once, each projection sees each token once; true keys cost one call on the visual tokens."""
    model, inputs = llava(), CASES["one image"]()
    length, calls, tokens = inputs["input_ids"].shape[1], Counter(), Counter()
    for index, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_hook(lambda *_, i=index: calls.update([f"layer {i}"]))
        for name in ("q_proj", "k_proj", "v_proj"):

            def count(module, args, output, key=f"{name} {index}"):
                calls.update([key])
                tokens.update({key: output.shape[:-1].numel()})

            getattr(layer.self_attn, name).register_forward_hook(count)
    with adaptprune.prune(model, spec, keep_ratio=0.25):
        model(**inputs)
    short = length - RUN + RUN // 4
    for index in range(LAYERS):
        rows = length if index < 2 else short
        assert calls[f"layer {index}"] == 1
        for name in ("q_proj", "k_proj", "v_proj"):
            more = extra if (name, index) == ("k_proj", 2) else 0
            assert calls[f"{name} {index}"] == 1 + more
            assert tokens[f"{name} {index}"] == rows + more * RUN


@torch.no_grad()
def test_text_only_prompts_are_not_pruned():
    model, inputs = llava(), batch(prompt(0, 12), prompt(0, 7, 3))
    plain = model(**inputs).logits
    with adaptprune.prune(model, "adaptprune") as report:
        assert torch.equal(model(**inputs).logits, plain)
        assert [sample.num_visual for sample in report.samples] == [0, 0]
        assert "no image" in str(report)


@torch.no_grad()
def test_hooks_come_off_after_an_exception():
    model, inputs = llava(), CASES["one image"]()
    before, plain = hooks_of(model), model(**inputs).logits
    broken = model.model.language_model.layers[3].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), adaptprune.prune(model, "adaptprune"):
        model(**inputs)
    broken.remove()
    assert hooks_of(model) == before
    assert torch.equal(model(**inputs).logits, plain)
    with adaptprune.prune(model, "adaptprune"):  # nothing of the broken forward is left
        assert model(**batch(prompt(0, 9))).logits.shape[1] == 9


@torch.no_grad()
def test_two_generations_in_turns_do_not_see_each_other():
    """Caches of two prompts are continued alternately, each as if it were alone."""
    model = llava()
    prompts = [CASES["one image"](), CASES["ragged left"]()]

    def step(inputs, cache=None, token=None):
        if cache is None:
            return model(**inputs)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        return model(input_ids=token, attention_mask=mask, past_key_values=cache)

    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25):
        alone = []
        for inputs in prompts:
            out = step(inputs)
            alone.append(step(inputs, out.past_key_values, out.logits[:, -1:].argmax(-1)).logits)
        outs = [step(inputs) for inputs in prompts]
        caches = [copy.deepcopy(out.past_key_values) for out in outs]  # what was dropped travels with a copy
        turns = [step(i, c, o.logits[:, -1:].argmax(-1)).logits for i, c, o in zip(prompts, caches, outs, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, turns, strict=True))


@torch.no_grad()
def test_threads_do_not_see_each_other():
    model = llava()
    cases = [CASES["one image"](), CASES["two images"](), CASES["ragged left"](), batch(prompt(0, 9))]
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25):
        expected = [model.generate(**inputs, max_new_tokens=4).tolist() for inputs in cases]
        found: dict[int, list] = {}

        def work(index: int) -> None:
            with torch.no_grad():
                found[index] = [model.generate(**cases[index], max_new_tokens=4).tolist() for _ in range(3)]

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {index: [words] * 3 for index, words in enumerate(expected)}


@torch.no_grad()
def test_a_bfloat16_model_keeps_the_right_number():
    model = llava(dtype=torch.bfloat16)
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.5) as report:
        out = model(**batch(prompt(1, 9), dtype=torch.bfloat16))
    assert out.logits.dtype == torch.bfloat16
    assert report.num_kept == RUN // 2


class TestErrors:
    """A mistake is named in one line and leaves the model as it was."""

    @pytest.mark.parametrize("ratio", [0, -0.5, 1.5, float("nan"), float("inf"), "half", True])
    def test_keep_ratio(self, ratio):
        with pytest.raises(AdaptPruneError, match=f"keep_ratio={ratio!r}.*above 0 and at most 1"):
            adaptprune.prune(llava(), "adaptprune", keep_ratio=ratio)

    @pytest.mark.parametrize(
        ("layer", "text"), [(5, "has 5 decoder layers: use 1 to 4"), (0, "too early"), (-1, "0 or more")]
    )
    def test_layer(self, layer, text):
        with pytest.raises(AdaptPruneError, match=f"layer={layer}.*{text}"):
            adaptprune.prune(llava(), "adaptprune", layer=layer)

    def test_unknown_names(self):
        with pytest.raises(AdaptPruneError, match="unknown method 'fastvv'. Did you mean 'fastv'"):
            adaptprune.prune(llava(), "fastvv")
        with pytest.raises(
            AdaptPruneError, match="unknown option 'keep_ration' for 'fastv'. Did you mean 'keep_ratio'"
        ):
            adaptprune.prune(llava(), "fastv", keep_ration=0.5)
        with pytest.raises(AdaptPruneError, match="unknown keys='layers'. Did you mean 'layer'"):
            adaptprune.prune(llava(), "adaptprune:keys=layers")

    def test_not_a_vision_language_model(self):
        with pytest.raises(AdaptPruneError, match="LlamaModel has no get_image_features"):
            adaptprune.prune(llava().model.language_model, "random")
        with pytest.raises(AdaptPruneError, match="model is a str: pass a loaded model"):
            adaptprune.prune("llava", "random")

    @torch.no_grad()
    def test_pruning_twice(self):
        model, inputs = llava(), CASES["one image"]()
        with adaptprune.prune(model, "fastv") as report:
            first = model(**inputs).logits
            with pytest.raises(AdaptPruneError, match=r"already pruned \(fastv:"):
                adaptprune.prune(model.model, "random")
            assert torch.equal(model(**inputs).logits, first)
        assert report.prompts == 2
        assert not hooks_of(model)

    @torch.no_grad()
    def test_pruning_nothing_although_there_is_an_image(self):
        model, inputs = llava(), CASES["one image"]()
        features = model.model.get_image_features(inputs["pixel_values"])
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        with adaptprune.prune(model, "random"):
            embeds[inputs["input_ids"] == IMAGE] = features.pooler_output[0]
            with pytest.raises(AdaptPruneError, match=r"36 embeddings that are no token's \(the first at place 4\)"):
                model(inputs_embeds=embeds)
            if not takes_ready(model):
                with pytest.raises(AdaptPruneError, match="LlavaModel does not take it: pass the pictures"):
                    model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features})
                return
            with pytest.raises(ValueError, match="tokens: 30, features: 2304"):  # transformers' own
                model(input_ids=inputs["input_ids"][:, 10:], mm_encoder_outputs={"image": features})
            # encoded before the model was pruned, which for this family is enough
            assert model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features}).logits.shape[1] < 45

    @torch.no_grad()
    def test_static_caches_are_refused_by_name(self):
        model, inputs = llava(), CASES["one image"]()
        with adaptprune.prune(model, "random"), pytest.raises(AdaptPruneError, match="StaticCache cannot be pruned"):
            model.generate(**inputs, max_new_tokens=3, cache_implementation="static")

    @torch.no_grad()
    def test_a_cache_is_continued_as_it_was_filled(self):
        model, inputs = llava(), CASES["one image"]()
        token = torch.tensor([[5]])
        with adaptprune.prune(model, "fastv", layer=2):
            cache = model(**inputs).past_key_values
            with pytest.raises(AdaptPruneError, match="a batch of 1 prompts and is continued with 2"):
                model(input_ids=token.expand(2, 1), past_key_values=cache)
        with (
            adaptprune.prune(model, "fastv", layer=3),
            pytest.raises(AdaptPruneError, match=r"layers \[2\] and cannot"),
        ):
            model(input_ids=token, past_key_values=cache)
