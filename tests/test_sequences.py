"""What generate() was given belongs to its sequence: a second prompt that is read meanwhile changes nothing in it.

Contrastive decoding, guidance and stopping criteria that ask the model, over a cache of their own or without one.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from adaptprune.testing.oracle import hiding
from tests.asking import (
    KEPT,
    SECONDS,
    STEPS,
    Asker,
    Second,
    Stopping,
    close,
    far,
    first,
    generate,
    layer_of,
    pruning,
    said,
    shared,
)
from tests.tiny import IMAGE, batch, dropped, prompt

RULES = ["adaptprune", "random:layer=0", "grid:layer=3", "fastv:layer=1"]
SOME = ["longer", "text"]
CACHED = pytest.mark.parametrize("cached", [True, False], ids=["second cached", "second uncached"])
RESELECT = pytest.mark.parametrize("reselect", [False, True], ids=["once", "reselect"])
USE_CACHE = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])


unpruned = cache(lambda: copy.deepcopy(shared()))


@cache
def expected_of(spec: str, use_cache: bool, reselect: bool):
    """The first prompt generated alone: the report, and what the oracle writes."""
    model, inputs = shared(), first()
    with pruning(model, spec, reselect=reselect) as report:
        generate(model, inputs, use_cache=use_cache)
    with hiding(model, layer_of(spec), dropped(report, inputs)):
        return said(report), *generate(model, inputs, use_cache=use_cache)


def check(spec: str, second: str, cached: bool, use_cache: bool, reselect: bool) -> None:
    model, inputs, layer = shared(), first(), layer_of(spec)
    asked = Second(model, SECONDS[second](), cached)
    with pruning(model, spec, reselect=reselect) as report:
        words, logits = generate(model, inputs, Asker(asked), use_cache=use_cache)
    assert len(asked.logits) == STEPS  # it was read while generate() ran
    assert report.num_kept == len(report.samples[0].kept) == KEPT
    alone, full, expected = expected_of(spec, use_cache, reselect)
    close(logits, expected)
    assert torch.equal(words, full)
    assert said(report) == alone
    with pruning(model, spec, reselect=reselect) as report:
        single = asked.again(report)
    close(asked.logits, single.logits)
    pictures = int((single.start["input_ids"] == IMAGE).sum()) // 36
    assert [len(row) for row in single.gone[0]] == [
        int((row == IMAGE).sum()) // 36 * (36 - KEPT) for row in single.start["input_ids"]
    ]
    if not (cached and reselect):
        close(asked.logits, single.by_the_oracle(layer).logits)
    assert far(asked.logits, asked.again().logits) == bool(pictures)  # unpruned


@pytest.mark.parametrize("second", SECONDS)
@CACHED
@RESELECT
@USE_CACHE
@torch.no_grad()
def test_a_second_prompt_is_a_sequence_of_its_own(second, cached, use_cache, reselect):
    check("fastv:layer=2", second, cached, use_cache, reselect)


@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("second", SOME)
@CACHED
@USE_CACHE
@torch.no_grad()
def test_with_every_rule(spec, second, cached, use_cache):
    check(spec, second, cached, use_cache, reselect=False)


@pytest.mark.parametrize("spec", RULES[:3])
@CACHED
@USE_CACHE
@torch.no_grad()
def test_with_every_rule_that_chooses_anew(spec, cached, use_cache):
    check(spec, "as long", cached, use_cache, reselect=True)


@torch.no_grad()
def test_the_prompts_above_tell_right_from_wrong():
    """Ranked from another word or by another prompt's places, they come out apart."""
    model, inputs = shared(), first()
    for name in ("longer", "as long", "other pixels", "the same and more", "two pictures"):
        second = SECONDS[name]()
        with pruning(model, "fastv") as report:
            right, gone = model(**second).logits[:, -1], dropped(report, second)
            model(**inputs)
            others = [dropped(report, inputs)]
            for shorter in (1, 2):  # ranked from another word of its own
                ids = second["input_ids"][:, :-shorter]
                model(input_ids=ids, pixel_values=second["pixel_values"])
                others.append(dropped(report, {"input_ids": ids}))
        for wrong in others:
            assert wrong != gone
            with hiding(model, 2, wrong):
                assert far(model(**second).logits[:, -1], right)


@USE_CACHE
@CACHED
@RESELECT
@torch.no_grad()
def test_a_batch_is_generated_while_another_is_read(use_cache, cached, reselect):
    model = shared()
    inputs = batch(prompt(1, 9), prompt(2, 14, 3), prompt(0, 20, 4))
    asked = Second(model, SECONDS["a batch"](), cached)
    with pruning(model, "adaptprune", reselect=reselect) as report:
        words, logits = generate(model, inputs, Asker(asked), use_cache=use_cache)
    assert [sample.num_kept for sample in report.samples] == [KEPT, 2 * KEPT, 0]
    with hiding(model, 2, dropped(report, inputs)):
        full, expected = generate(model, inputs, use_cache=use_cache)
    close(logits, expected)
    assert torch.equal(words, full)
    with pruning(model, "adaptprune", reselect=reselect):
        close(asked.logits, asked.again().logits)


@CACHED
@USE_CACHE
@torch.no_grad()
def test_contrastive_decoding(cached, use_cache):
    """The scores are a mixture, so that a slip in either prompt changes what is written."""
    model, inputs, other = shared(), first(), copy.deepcopy(shared())
    asked = Second(model, SECONDS["other pixels"](), cached)
    with pruning(model, "fastv") as report:
        words, logits = generate(model, inputs, Asker(asked, mix=0.8), use_cache=use_cache)
        plain, _ = generate(model, inputs, use_cache=use_cache)
    with pruning(other, "fastv"), hiding(model, 2, dropped(report, inputs)):
        mixed = Asker(Second(other, SECONDS["other pixels"](), cached), mix=0.8)
        full, expected = generate(model, inputs, mixed, use_cache=use_cache)
    close(logits, expected)
    assert torch.equal(words, full)
    assert not torch.equal(words, plain)


@pytest.mark.parametrize("negative", [None, 3, 80], ids=["the last word", "short", "long"])
@USE_CACHE
@RESELECT
@pytest.mark.parametrize("spec", ["fastv", "random:layer=0"])
@torch.no_grad()
def test_guidance_with_a_negative_prompt(negative, use_cache, reselect, spec):
    model, inputs, other = shared(), first(), unpruned()
    ids = None if negative is None else prompt(0, negative, 5)[None]
    with pruning(model, spec, reselect=reselect) as report:
        words, logits = generate(model, inputs, use_cache=use_cache, guidance_scale=1.8, negative_prompt_ids=ids)
    alone, plain, _ = expected_of(spec, use_cache, reselect)
    assert said(report) == alone
    with hiding(model, layer_of(spec), dropped(report, inputs)):  # the negative one is read by a model without masks
        guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.8, other, ids, use_cache=use_cache)
        full, expected = generate(model, inputs, guide, use_cache=use_cache)
    close(logits, expected)
    assert torch.equal(words, full)
    assert not torch.equal(words, plain)


@torch.no_grad()
def test_the_report_after_guidance_is_of_the_prompt_that_was_generated():
    model, inputs = shared(), first()
    with pruning(model, "adaptprune") as report:
        generate(model, inputs, use_cache=True, guidance_scale=1.8, negative_prompt_ids=prompt(0, 80, 5)[None])
    assert (report.num_visual, report.num_kept) == (36, KEPT)
    length = inputs["input_ids"].shape[1]
    assert report.kv_lengths == [length] * 2 + [length - 36 + KEPT] * 3


@pytest.mark.parametrize("second", ["longer", "shorter", "two pictures", "text"])
@USE_CACHE
@RESELECT
@torch.no_grad()
def test_generating_within_generating(second, use_cache, reselect):
    """A stopping criterion that lets the same model write about another prompt after every token."""
    model, inputs, other = shared(), first(), SECONDS[second]()
    for spec in ("fastv", "random:layer=0"):
        with pruning(model, spec, reselect=reselect):
            stopping = Stopping(lambda: generate(model, other, steps=3))
            words, logits = generate(model, inputs, use_cache=use_cache, stopping_criteria=[stopping])
        assert len(stopping.found) == STEPS
        _, full, expected = expected_of(spec, use_cache, reselect)
        close(logits, expected)
        assert torch.equal(words, full)
        with pruning(model, spec, reselect=reselect) as report:
            lines, single = generate(model, other, steps=3)
        with hiding(model, layer_of(spec), dropped(report, other)):
            _, hidden = generate(model, other, steps=3)
        close(single, hidden)
        for line, found in stopping.found:
            close(found, single)
            assert torch.equal(line, lines)


@pytest.mark.parametrize("where", ["criterion", "processor"])
@USE_CACHE
@torch.no_grad()
def test_the_report_after_nested_generating_is_of_the_outer_prompt(where, use_cache):
    model, inputs, other = shared(), first(), SECONDS["two pictures"]()
    with pruning(model, "fastv") as alone:
        generate(model, inputs, use_cache=use_cache)
    with pruning(model, "fastv") as report:
        work = Stopping(lambda: generate(model, other, steps=2))
        if where == "criterion":
            generate(model, inputs, use_cache=use_cache, stopping_criteria=[work])
        else:
            generate(model, inputs, lambda ids, scores: work(ids, scores)[0] * 0 + scores, use_cache=use_cache)
    assert len(work.found) == STEPS
    assert said(report) == said(alone)


@torch.no_grad()
def test_the_report_of_a_plain_reading_follows_generate():
    """Once generate() is over, the next prompt is reported again."""
    model, other = shared(), SECONDS["two pictures"]()
    with pruning(model, "fastv") as report:
        generate(model, first(), Asker(Second(model, SECONDS["longer"](), True)))
        model(**other)
    assert report.num_kept == 2 * KEPT
    assert report.kv_lengths == [82] * 2 + [82 - 72 + 2 * KEPT] * 3


@CACHED
@USE_CACHE
@torch.no_grad()
def test_an_error_in_the_second_prompt_leaves_nothing_behind(cached, use_cache):
    model, inputs = shared(), first()
    with pruning(model, "fastv") as report:
        words, logits = generate(model, inputs, use_cache=use_cache)
        expected = said(report)
        with pytest.raises(ZeroDivisionError):
            generate(model, inputs, lambda ids, scores: 1 / 0, use_cache=use_cache)
        alone = Second(model, SECONDS["longer"](), cached)
        alone.ask()
        again, same = generate(model, inputs, use_cache=use_cache)
        assert said(report) == expected
    assert torch.equal(again, words)
    assert torch.equal(same, logits)
    with pruning(model, "fastv"):
        close(alone.logits, alone.again().logits)
