"""Every registered family, on a tiny model with its real processor: nothing here names one but the specimens."""

from __future__ import annotations

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.engines.transformers import TransformersEngine
from adaptprune.families import family_of
from adaptprune.testing.oracle import decoder_layers, hiding
from adaptprune.testing.specimen import LAYERS, PAD
from adaptprune.testing.zoo import SPECIMENS, specimen
from adaptprune.viz import CELL, GAP, overlay, pictures_seen

STEPS = 5
TOLERANCE = 1e-4
FAMILY = pytest.mark.parametrize("family", SPECIMENS)


def test_every_family_has_a_specimen():
    assert {specimen(name).model.config.model_type for name in SPECIMENS} == set(adaptprune.list_families())


def first_layer(family: str) -> int:
    config = specimen(family).model.config
    return max(2, family_of(config).smallest_layer(config))


def generate(one, inputs, **options):
    """Sequences, and the logits of every step, (B, STEPS, V)."""
    out = one.model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def gone(one, inputs, report) -> list[list[int]]:
    """Positions of dropped tokens: placeholders on a grid that the report does not list as kept."""
    with adaptprune.prune(one.model, "random", keep_ratio=1, layer=LAYERS - 1) as whole:
        one.model(**inputs)
    return [sorted(set(a.kept) - set(b.kept)) for a, b in zip(whole.samples, report.samples, strict=True)]


@FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_keep_ratio_one_is_bit_identical(family, attention):
    one = specimen(family, attention)
    inputs = one.inputs(1, 2, 0)
    plain, (words, logits) = one.model(**inputs).logits, generate(one, inputs)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=1, layer=first_layer(family)) as report:
        assert torch.equal(one.model(**inputs).logits, plain)
        again, same = generate(one, inputs)
    assert torch.equal(again, words)
    assert torch.equal(same, logits)
    placeholders = (inputs["input_ids"] == one.image_token_id).sum(dim=1).tolist()
    for sample, count in zip(report.samples, placeholders, strict=True):
        assert sample.num_kept == sample.num_visual == sum(rows * columns for _, rows, columns in sample.grids)
        assert 0.8 * count <= sample.num_visual <= count  # all but newline tokens
    assert [len(sample.images) for sample in report.samples] == [1, 2, 0]


@FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["adaptprune", "random"])
@torch.no_grad()
def test_generation_equals_the_oracle(family, attention, method):
    one = specimen(family, attention)
    inputs = one.inputs(1, 2, 0)
    layer = first_layer(family)
    with adaptprune.prune(one.model, method, keep_ratio=0.3, layer=layer) as report:
        words, logits = generate(one, inputs)
    hidden = gone(one, inputs, report)
    assert [len(row) > 0 for row in hidden] == [True, True, False]
    with hiding(one.model, layer, hidden):
        full, expected = generate(one, inputs)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(words, full)


@FAMILY
@torch.no_grad()
def test_before_the_language_model(family):
    """Site `encoder`: layer 0, where the family has it; otherwise the error names the first layer that works."""
    one = specimen(family)
    inputs = one.inputs(1, 2)
    kind = family_of(one.model.config)
    smallest = kind.smallest_layer(one.model.config)
    assert kind.supports["encoder"] == (smallest == 0)
    if smallest:
        with pytest.raises(AdaptPruneError, match=f"layer=0 is too early.*use layer={smallest} or later"):
            adaptprune.prune(one.model, "random", layer=0)
        return
    with adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=0) as report:
        words, logits = generate(one, inputs)
    with hiding(one.model, 0, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(words, full)


@FAMILY
@torch.no_grad()
def test_kept_positions_of_one_prompt_equal_the_oracle(family):
    one = specimen(family)
    inputs = one.inputs(2)
    layer = first_layer(family)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=layer) as report:
        logits = one.model(**inputs).logits[0]
    (hidden,) = gone(one, inputs, report)
    stays = sorted(set(range(inputs["input_ids"].shape[1])) - set(hidden))
    with hiding(one.model, layer, [hidden]):
        expected = one.model(**inputs).logits[0, stays]
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@FAMILY
@torch.no_grad()
def test_a_batch_row_equals_the_sample_alone(family):
    one = specimen(family)
    layer = first_layer(family)
    together = one.inputs(1, 2, 0)
    pictures, texts = one.pictures(3), one.texts(1, 2, 0)
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=layer) as report:
        words, logits = generate(one, together)
        samples, at = report.samples, 0
        for row, (text, count) in enumerate(zip(texts, (1, 2, 0), strict=True)):
            if not count and family == "paligemma":
                continue  # its processor takes no prompt without a picture
            alone = one.read([text], [pictures[at : at + count]])
            at += count
            line, single = generate(one, alone)
            assert words[row, -STEPS:].tolist() == line[0, -STEPS:].tolist()
            torch.testing.assert_close(logits[row], single[0], atol=TOLERANCE, rtol=0)
            shift = together["input_ids"].shape[1] - alone["input_ids"].shape[1]
            assert samples[row].kept == [place + shift for place in report.samples[0].kept]
            assert samples[row].cells == report.samples[0].cells
            assert samples[row].images == report.samples[0].images


@FAMILY
@torch.no_grad()
def test_report_and_cache_lengths(family):
    one = specimen(family)
    inputs, layer = one.inputs(2), first_layer(family)
    length = inputs["input_ids"].shape[1]
    with adaptprune.prune(one.model, "fastv", keep_ratio=0.3, layer=layer) as report:
        cache = one.model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    (sample,) = report.samples
    assert [kept for _, kept in sample.images] == [max(1, int(0.3 * count)) for count, _ in sample.images]
    assert sample.num_kept == len(sample.kept) == len(sample.cells) == sum(kept for _, kept in sample.images)
    assert (inputs["input_ids"][0, sample.kept] == one.image_token_id).all()
    held = [length] * layer + [length - sample.num_visual + sample.num_kept] * (LAYERS - layer)
    windows = [getattr(each, "sliding_window", None) or 10**9 for each in cache.layers]
    assert report.kv_lengths == [min(n, window - 1) for n, window in zip(held, windows, strict=True)]
    assert [each.keys.shape[-2] for each in cache.layers] == report.kv_lengths
    assert [each.get_seq_length() for each in cache.layers] == [length] * LAYERS
    assert report.kv_bytes == sum(each.keys.nbytes + each.values.nbytes for each in cache.layers)
    for grid, row, column in sample.cells:
        _, rows, columns = sample.grids[grid]
        assert 0 <= row < rows
        assert 0 <= column < columns


@FAMILY
@torch.no_grad()
def test_after_an_exception_the_model_is_as_before(family):
    one = specimen(family)
    inputs = one.inputs(1)
    plain, base = one.model(**inputs).logits, one.model.model
    before = set(vars(base))
    broken = decoder_layers(one.model)[4].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=first_layer(family)),
    ):
        one.model(**inputs)
    broken.remove()
    assert torch.equal(one.model(**inputs).logits, plain)
    assert set(vars(base)) == before
    for module in one.model.modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        assert not [hook for hook in hooks if "adaptprune" in getattr(hook, "__module__", "")]
        assert "adaptprune" not in str(getattr(getattr(module, "config", None), "_attn_implementation", ""))


@FAMILY
@torch.no_grad()
def test_padding_is_not_read(family):
    """What stands in padded places changes nothing, pruned or not."""
    one = specimen(family)
    inputs = one.inputs(1, 2)
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, PAD + 3)}
    with adaptprune.prune(one.model, "adaptprune", keep_ratio=0.3, layer=first_layer(family)):
        _, logits = generate(one, inputs)
        _, same = generate(one, other)
    torch.testing.assert_close(logits, same, atol=TOLERANCE, rtol=0)


@FAMILY
def test_the_engine_answers_and_draws(family):
    """Prompt, picture, answer, timings and the overlay, as the command line has them."""
    one = specimen(family)
    engine = TransformersEngine(one.model, one.processor)
    if one.placeholder != getattr(one.processor, "image_token", "<image>"):  # its chat template would say more
        one.processor.chat_template = "{{ messages[0].content[-1].text }} " + one.placeholder + " w1"
    images = one.pictures(1)
    pruner = adaptprune.make_pruner("adaptprune", keep_ratio=0.3, layer=first_layer(family))
    answer = engine.answer(images, "w3 w4 w5", pruner, max_new_tokens=4)
    assert answer.report.samples[0].num_kept == int(0.3 * answer.report.samples[0].num_visual)
    assert answer.timings.new_tokens == 4
    (sample,) = answer.report.samples
    seen = pictures_seen(one.processor, answer.inputs, sample)
    picture = overlay(images, sample, seen)
    widths = [columns for _, _, columns in sample.grids]
    assert picture.width == sum(widths) * CELL + GAP * (len(widths) - 1)
    assert picture.height == max(rows for _, rows, _ in sample.grids) * CELL
    grid, row, column = sample.cells[0]
    left = sum(width * CELL + GAP for width in widths[:grid]) + column * CELL
    assert picture.getpixel((left, row * CELL)) == (255, 255, 255)  # the outline of a kept patch
