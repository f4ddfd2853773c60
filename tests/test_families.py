"""Every registered family, on a tiny model with its real processor: nothing here names one but the specimens."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.engines import LocalEngine, Pruning, Sampling
from adaptprune.families import family_of, since
from adaptprune.hooks.seams import parts_of
from adaptprune.hooks.seams.versions import reaches
from adaptprune.prompts import question
from adaptprune.pruner import Pruner
from adaptprune.testing.oracle import attends, decoder_layers
from adaptprune.testing.specimen import LAYERS, PAD
from adaptprune.testing.zoo import FILES, SPECIMENS
from adaptprune.viz import CELL, GAP
from tests.asking import far
from tests.families import (
    FAMILY,
    HYBRID,
    KINDS,
    MIXES_ROWS,
    NO_TEXT,
    STEPS,
    all_of,
    equal,
    first_layer,
    generate,
    gone,
    oracle,
    pruned,
    specimen,
    suiting,
)


def test_every_family_has_a_specimen():
    tested = {name for name in adaptprune.list_families() if reaches(since(name))}
    assert {specimen(name).model.config.model_type for name in SPECIMENS} == tested
    assert set(KINDS.values()) <= {name for names in FILES.values() for name in names}


def by_image(sample) -> list[list[tuple[int, int]]]:
    """Rows and columns of every image's grids."""
    return [[shape for image, *shape in sample.grids if image == number] for number in range(len(sample.images))]


def marks(family: str, grids: list[tuple[int, int]]) -> int:
    """Tokens among the placeholders of an image that stand for no place in it: ends of rows and of pictures."""
    if family in ("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"):
        return sum(rows for rows, _ in grids[1:]) or 1  # the first grid is the image in small, or all of it
    if family == "hunyuan_vl":
        return sum(rows + 2 for rows, _ in grids)
    return 0


@FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_keep_ratio_one_is_bit_identical(family, attention):
    one = specimen(family, attention)
    inputs = one.inputs(1, 2, 0)
    plain, (words, logits) = one.model(**inputs).logits, generate(one, inputs)
    with pruned(one, family, keep_ratio=1) as report:
        assert torch.equal(one.model(**inputs).logits, plain)
        again, same = generate(one, inputs)
    assert torch.equal(again, words)
    assert torch.equal(same, logits)
    placeholders = (inputs["input_ids"] == one.image_token_id).sum(dim=1).tolist()
    for sample, count in zip(report.samples, placeholders, strict=True):
        assert sample.num_kept == sample.num_visual == sum(rows * columns for _, rows, columns in sample.grids)
        assert sample.num_visual == count - sum(marks(family, grids) for grids in by_image(sample))
    assert [len(sample.images) for sample in report.samples] == [1, 2, 0]


@FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["adaptprune", "random"])
@torch.no_grad()
def test_generation_equals_the_oracle(family, attention, method):
    one = specimen(family, attention)
    inputs = one.inputs(1, 2, 0)
    layer = first_layer(family)
    with pruned(one, family, method) as report:
        words, logits = generate(one, inputs)
    hidden = gone(one, inputs, report)
    assert [len(row) > 0 for row in hidden] == [True, True, False]
    with oracle(one, inputs, layer, hidden):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)


@FAMILY
@torch.no_grad()
def test_before_the_language_model(family):
    """Site `encoder`: layer 0, where the family has it; otherwise the error names the first layer that works."""
    one = specimen(family)
    inputs = one.inputs(1, 2)
    smallest = family_of(one.model.config).smallest_layer(one.model.config)
    if smallest:
        with pytest.raises(AdaptPruneError, match=f"layer=0 is too early.*use layer={smallest} or later"):
            adaptprune.prune(one.model, "random", layer=0)
        return
    with adaptprune.prune(one.model, "random", keep_ratio=0.3, layer=0) as report:
        words, logits = generate(one, inputs)
    with oracle(one, inputs, 0, gone(one, inputs, report)):
        full, expected = generate(one, inputs)
    equal(logits, expected)
    assert torch.equal(words, full)


@FAMILY
@torch.no_grad()
def test_kept_positions_of_one_prompt_equal_the_oracle(family):
    one = specimen(family)
    inputs = one.inputs(2)
    layer = first_layer(family)
    with pruned(one, family) as report:
        logits = one.model(**inputs).logits[0]
    (hidden,) = gone(one, inputs, report)
    stays = sorted(set(range(inputs["input_ids"].shape[1])) - set(hidden))
    with oracle(one, inputs, layer, [hidden]):
        expected = one.model(**inputs).logits[0, stays]
    equal(logits, expected)


@FAMILY
@torch.no_grad()
def test_a_batch_row_equals_the_sample_alone(family):
    one = specimen(family)
    counts = (2, 0) if family in MIXES_ROWS else (1, 2, 0)
    together = one.inputs(*counts)
    pictures, texts = one.pictures(3), one.texts(*counts)
    with pruned(one, family) as report:
        words, logits = generate(one, together)
        samples, at = report.samples, 0
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            if not count and family in NO_TEXT:
                continue
            alone = one.read([text], [pictures[at : at + count]])
            at += count
            line, single = generate(one, alone)
            assert words[row, -STEPS:].tolist() == line[0, -STEPS:].tolist()
            equal(logits[row], single[0])
            shift = together["input_ids"].shape[1] - alone["input_ids"].shape[1]
            assert samples[row].kept == [place + shift for place in report.samples[0].kept]
            assert samples[row].cells == report.samples[0].cells
            assert samples[row].images == report.samples[0].images


def holds_keys(model, count: int) -> list[bool]:
    """Of each layer of a cache, whether it has keys: not where a layer has another memory, or reads another's keys."""
    layers = decoder_layers(model)[:count]
    return [
        attends(layer) and not any(getattr(each, "is_kv_shared_layer", False) for each in layer.modules())
        for layer in layers
    ]


@pytest.mark.parametrize("family", MIXES_ROWS)
@torch.no_grad()
def test_why_some_rows_are_not_compared_with_themselves_alone(family):
    """Stock transformers places the tokens of the second picture row by the first: it differs unpruned, too."""
    one = specimen(family)
    together, alone = one.inputs(1, 2), one.read([one.texts(1, 2)[1]], [one.pictures(3)[1:]])
    assert far(one.model(**together).logits[1, -1], one.model(**alone).logits[0, -1])


@FAMILY
@torch.no_grad()
def test_report_and_cache_lengths(family):
    one = specimen(family)
    inputs, layer = one.inputs(2), first_layer(family)
    length = inputs["input_ids"].shape[1]
    with pruned(one, family, "fastv") as report:
        cache = one.model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    (sample,) = report.samples
    assert [kept for _, kept in sample.images] == [max(1, int(0.3 * count)) for count, _ in sample.images]
    assert sample.num_kept == len(sample.kept) == len(sample.cells) == sum(kept for _, kept in sample.images)
    assert (inputs["input_ids"][0, sample.kept] == one.image_token_id).all()
    held = [length] * layer + [length - sample.num_visual + sample.num_kept] * (LAYERS - layer)
    windows = [getattr(each, "sliding_window", None) or 10**9 for each in cache.layers]
    filled = holds_keys(one.model, len(cache.layers))
    assert report.kv_lengths == [
        min(n, window - 1) if full else 0 for n, window, full in zip(held, windows, filled, strict=False)
    ]
    with_keys = [each for each, full in zip(cache.layers, filled, strict=True) if full]
    assert [each.keys.shape[-2] for each in with_keys] == [n for n in report.kv_lengths if n]
    assert [each.get_seq_length() for each in with_keys] == [length] * len(with_keys)
    assert report.kv_bytes == sum(each.keys.nbytes + each.values.nbytes for each in with_keys)
    for grid, row, column in sample.cells:
        _, rows, columns = sample.grids[grid]
        assert 0 <= row < rows
        assert 0 <= column < columns


def hooks_of(module) -> list:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


@FAMILY
@torch.no_grad()
def test_after_an_exception_the_model_is_as_before(family):
    one = specimen(family)
    inputs = one.inputs(1)
    plain, base = one.model(**inputs).logits, parts_of(one.model).base
    before, hooks = set(vars(base)), {module: hooks_of(module) for module in one.model.modules()}
    broken = decoder_layers(one.model)[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        pruned(one, family),
    ):
        one.model(**inputs)
    broken.remove()
    assert torch.equal(one.model(**inputs).logits, plain)
    assert set(vars(base)) == before
    for module in one.model.modules():
        assert hooks_of(module) == hooks[module]
        assert "adaptprune" not in str(getattr(getattr(module, "config", None), "_attn_implementation", ""))


@FAMILY
@torch.no_grad()
def test_padding_is_not_read(family):
    """What stands in padded places changes nothing, pruned or not."""
    one = specimen(family)
    inputs = one.inputs(1, 2)
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, PAD + 3)}
    with pruned(one, family):
        _, logits = generate(one, inputs)
        _, same = generate(one, other)
    equal(logits, same)


@FAMILY
def test_the_engine_answers_and_draws(family):
    """Prompt, picture, answer, timings and the overlay, as the command line has them."""
    one = specimen(family)
    engine = LocalEngine(one.model, one.processor)
    pruner = adaptprune.make_pruner(**suiting(family), keep_ratio=0.3)
    turns = question("w3 w4 w5", one.pictures(1))
    answer = engine.ask(turns, Sampling(4, temperature=0.0), Pruning(pruner))
    engine.close()
    assert answer.report.samples[0].num_kept == int(0.3 * answer.report.samples[0].num_visual)
    assert answer.new_tokens == 4
    (sample,), picture = answer.report.samples, answer.overlay
    widths = [columns for _, _, columns in sample.grids]
    assert picture.width == sum(widths) * CELL + GAP * (len(widths) - 1)
    assert picture.height == max(rows for _, rows, _ in sample.grids) * CELL
    grid, row, column = sample.cells[0]
    left = sum(width * CELL + GAP for width in widths[:grid]) + column * CELL
    assert picture.getpixel((left, row * CELL)) == (255, 255, 255)  # the outline of a kept patch


@dataclass(frozen=True)
class Looking(Pruner):
    """Notes the keys that it is handed, and keeps what comes first."""

    name = "looking"
    needs = frozenset({"keys"})
    seen: list = field(default_factory=list)

    def select(self, tokens, num_keep):
        self.seen.append(tokens.keys.clone())
        return torch.arange(num_keep)


@pytest.mark.parametrize("family", [name for name in SPECIMENS if name not in HYBRID])
@torch.no_grad()
def test_the_keys_that_are_compared_are_those_of_layer_k(family):
    """What layer K's own projection puts out for these tokens in the unpruned model."""
    one, layer = specimen(family), first_layer(family)
    if family == "gemma3n":
        with pytest.raises(AdaptPruneError, match="before it has mixed its streams.*keys='previous'"):
            adaptprune.prune(one.model, Looking(keep_ratio=0.5, layer=layer))
        return
    inputs, found = one.inputs(1), []
    attention = next(
        each
        for name, each in decoder_layers(one.model)[layer].named_modules()
        if name.endswith(("k_proj", "kv_a_proj_with_mqa"))
    )
    hook = attention.register_forward_hook(lambda module, args, output: found.append(output))
    one.model(**inputs)
    hook.remove()
    places, method = all_of(one, inputs)[0], Looking(keep_ratio=0.5, layer=layer)
    with adaptprune.prune(one.model, method):
        one.model(**inputs)
    torch.testing.assert_close(torch.cat(method.seen), found[0][0, places], atol=1e-5, rtol=0)
