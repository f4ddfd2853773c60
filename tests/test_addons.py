"""positions="packed": a prompt without its dropped tokens is the same as one that never had them."""

from __future__ import annotations

import copy

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.errors import CannotReselect
from adaptprune.families import CHECKED
from adaptprune.hooks import addons, passed, selfcheck
from adaptprune.hooks.handle import check_suits
from adaptprune.hooks.seams import parts_of
from adaptprune.hooks.seams.versions import reaches
from adaptprune.hooks.selfcheck import Failed, Trial
from adaptprune.testing.oracle import hiding
from adaptprune.testing.shapes import shape
from tests.addons import PACKABLE, UNPACKABLE, FirstStage, TwoStages, renumbered, shorter, tiny
from tests.asking import far
from tests.families import NO_TEXT, equal, first_layer, generate, gone, oracle, specimen, suiting
from tests.tiny import CASES, IMAGE, batch, dropped, llava, prompt

#: Words that are generated of every family.
STEPS = 3


def packing(one, layer, **options):
    return adaptprune.prune(one.model, "random", layer=layer, keep_ratio=0.3, positions="packed", **options)


def layer_zero(one) -> bool:
    return adaptprune.families.family_of(one.model.config).smallest_layer(one.model.config) == 0


@pytest.mark.parametrize("name", UNPACKABLE)
def test_what_cannot_be_packed_is_refused_by_name(name):
    one, layer = specimen(name), first_layer(name)
    for refuse in (
        lambda: packing(one, layer),
        lambda: check_suits(one.model, adaptprune.make_pruner("random", layer=layer, positions="packed")),
    ):
        with pytest.raises(AdaptPruneError, match=f"positions='packed'.*{UNPACKABLE[name]}.*positions='original'"):
            refuse()


@torch.no_grad()
def stepped(one, cache, words):
    """Logits of words that are read one by one."""
    return torch.stack(
        [one.model(input_ids=words[:, [step]], past_key_values=cache).logits[:, -1] for step in range(words.shape[1])],
        dim=1,
    )


@pytest.mark.parametrize("name", PACKABLE)
@torch.no_grad()
def test_at_layer_0_it_is_the_shorter_prompt(name):
    """Each row of a padded batch, and what is generated after it, as the model reads the kept tokens alone."""
    one = specimen(name)
    if not layer_zero(one):
        with pytest.raises(AdaptPruneError, match="layer=0 is too early"):
            packing(one, 0)
        return
    counts = (1, 2, 0)
    inputs, pictures, texts = one.inputs(*counts), one.pictures(3), one.texts(*counts)
    with packing(one, 0) as report:
        words, logits = generate(one, inputs, STEPS)
    with adaptprune.prune(one.model, "random", layer=0, keep_ratio=0.3):
        original = generate(one, inputs, STEPS)[1]
    hidden, at = gone(one, inputs, report), 0
    for row, count in enumerate(counts):
        mine, at = pictures[at : at + count], at + count
        if not count and name in NO_TEXT:
            continue
        alone = one.read([texts[row]], [mine])
        padding = inputs["input_ids"].shape[1] - alone["input_ids"].shape[1]
        stays = sorted(set(range(alone["input_ids"].shape[1])) - {place - padding for place in hidden[row]})
        with shorter(one, stays):
            first = one.model(**alone)
            expected = stepped(one, first.past_key_values, words[[row], -STEPS:-1])
        equal(logits[row], torch.cat([first.logits[:, -1:], expected], dim=1)[0])
        assert far(original[row], logits[row]) == bool(count)


@pytest.mark.parametrize("name", PACKABLE)
@torch.no_grad()
def test_from_layer_k_on_it_is_the_oracle_renumbered(name):
    one, layer = specimen(name), first_layer(name)
    inputs = one.inputs(1, 2, 0)
    with adaptprune.prune(one.model, **suiting(name, "fastv"), keep_ratio=0.3, positions="packed") as report:
        words, logits = generate(one, inputs, STEPS)
    hidden = gone(one, inputs, report)
    with oracle(one, inputs, layer, hidden), renumbered(one, {layer: hidden}):
        full, expected = generate(one, inputs, STEPS)
    with oracle(one, inputs, layer, hidden):
        _, unpacked = generate(one, inputs, STEPS)
    equal(logits, expected)
    assert torch.equal(words, full)
    assert far(logits[:2], unpacked[:2])


# -- what happens to a sequence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["same length, other image counts", "ragged left"])
@torch.no_grad()
def test_every_stage_numbers_anew(attention, case):
    one, inputs, gone_at = tiny(attention), CASES[case](), {}
    for rule in (FirstStage(positions="packed"), TwoStages(positions="packed")):
        with adaptprune.prune(one.model, rule) as report:
            words, logits = generate(one, inputs)
            gone_at[rule.stages(5)[-1]] = dropped(report, inputs)
    mask = inputs["attention_mask"]
    with hiding(one.model, 1, gone_at[1], padding=mask), hiding(one.model, 3, gone_at[3], padding=mask):
        with renumbered(one, {1: gone_at[1]}):
            wrong = generate(one, inputs)[1]
        with renumbered(one, gone_at):
            full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)
    assert far(wrong, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_beams_and_drafts(options, layer):
    one = tiny()
    inputs = batch(prompt(1, 15)) if "prompt_lookup_num_tokens" in options else CASES["ragged left"]()
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE], **options}
    with packing(one, layer) as report:
        words = one.model.generate(**inputs, **settings)
    report.samples = report.samples[:: options.get("num_beams", 1)]
    hidden = dropped(report, inputs)
    with hiding(one.model, layer, hidden), renumbered(one, {layer: hidden}):
        assert torch.equal(one.model.generate(**inputs, **settings), words)
    with packing(one, layer):
        assert torch.equal(one.model.generate(**inputs, **settings), words)


def turns(one, first, second, crop=0):
    """Logits of two prompts and three words over one cache; with `crop`, some words are read and taken back."""
    turn = one.model(**first)
    cache, mask = turn.past_key_values, first["attention_mask"]
    if crop:
        one.model(torch.full((1, crop), 9), past_key_values=cache)
        cache.crop(-crop)
    more = torch.cat([mask, second["attention_mask"]], dim=1)
    answer = one.model(**{**second, "attention_mask": more}, past_key_values=cache)
    return torch.cat([answer.logits[:, -1:], stepped(one, cache, torch.tensor([[7, 8, 9]]))], dim=1)


@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_turns_over_a_kept_cache(layer, crop):
    """What the second turn drops is free for what comes after it, besides what the first did."""
    one, first, second = tiny(), batch(prompt(1, 9)), batch(prompt(1, 7, 8), seed=2)
    with packing(one, layer) as report:
        one.model(**first)
        hidden = dropped(report, first)[0]
        logits = turns(one, first, second, crop)
        start = first["input_ids"].shape[1]
        visual = (second["input_ids"][0] == IMAGE).nonzero()[:, 0] + start
        hidden += sorted(set(visual.tolist()) - set(report.samples[0].kept))
    with hiding(one.model, layer, [hidden]), renumbered(one, {layer: [hidden]}):
        expected = turns(one, first, second)
    equal(logits, expected)


@torch.no_grad()
def test_evicted_below_the_rest_keeps_its_places():
    """Below K, kept tokens stay where they were read; from K on they are packed."""
    one, inputs = tiny(), CASES["ragged left"]()
    with packing(one, 2, evict_below=True) as report:
        words, logits = generate(one, inputs)
    hidden = dropped(report, inputs)
    with hiding(one.model, 2, hidden, decode_from=0), renumbered(one, {2: hidden}):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)


@torch.no_grad()
def test_what_does_not_go_together_is_refused():
    one, inputs = tiny(), batch(prompt(1, 9))
    with pytest.raises(CannotReselect, match="positions='packed' moves"):
        packing(one, 2, reselect=True)
    with packing(one, 2):
        cache = one.model(**inputs).past_key_values
    again = copy.deepcopy(cache)
    with (
        adaptprune.prune(one.model, "random", layer=2),
        pytest.raises(AdaptPruneError, match="pruned with positions='packed' and cannot be continued with"),
    ):
        one.model(torch.tensor([[5]]), past_key_values=again)
    with packing(one, 2):
        one.model(torch.tensor([[5]]), past_key_values=cache)


@torch.no_grad()
def test_frequencies_that_follow_the_length_are_refused():
    model = llava(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(AdaptPruneError, match="dynamic embeddings follow the longest position"):
        adaptprune.prune(model, "random", positions="packed")


@torch.no_grad()
def test_positions_of_a_callers_own():
    """Visual tokens that share one place leave none free."""
    one, inputs = tiny(), batch(prompt(1, 9))
    words = (inputs["input_ids"] != IMAGE).long()
    places = (words.cumsum(dim=1) - 1) + (1 - words)
    options = {**inputs, "position_ids": places}
    with packing(one, 2):
        found = one.model(**options).logits
    with adaptprune.prune(one.model, "random", layer=2, keep_ratio=0.3):
        equal(found, one.model(**options).logits)


# -- models of other types ---------------------------------------------------------------------------------------------


@pytest.fixture
def _forgetful(tmp_path, monkeypatch):
    monkeypatch.setenv(passed.HOME, str(tmp_path))
    monkeypatch.setattr(passed, "_here", set())


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("name", ["llava", "lfm2_vl", "kimi_k25", "granite4_vision", "paligemma"])
@torch.no_grad()
def test_the_check_of_untested_models_tries_it(name, monkeypatch):
    """Tested ones pass; one whose embeddings are not packed after all does not."""
    found, stages = parts_of(specimen(name).model), (first_layer(name),)
    assert selfcheck.run(Trial(found, stages, packed=True)) < 1e-4
    monkeypatch.setattr(addons, "_again", lambda handed, shift, noted: handed)
    with pytest.raises(Failed, match="packed positions"):
        selfcheck.run(Trial(found, stages, packed=True))
    selfcheck.run(Trial(found, stages))
    assert passed.key(found, stages, True) != passed.key(found, stages)


@pytest.mark.usefixtures("_forgetful")
@torch.no_grad()
def test_a_model_of_another_type_is_packed_once_it_passed():
    if not reaches("5.24.0"):
        pytest.skip("the types that are only checked were tried with transformers 5.24")
    one = shape(next(name for name in ("fuyu", "pp_chart2table") if name in CHECKED))
    with adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=2, positions="packed") as report:
        one.model(**one.inputs)
    assert report.tier == "checked"
