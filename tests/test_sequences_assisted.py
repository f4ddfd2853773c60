"""Drafts that are checked several tokens at a time, with a processor that reads a prompt of its own."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from adaptprune.testing.oracle import hiding
from tests.asking import KEPT, SECONDS, Asker, Second, close, first, generate, layer_of, pruning, said, shared
from tests.tiny import dropped, llava

STEPS = 7


@cache
def draft():
    """Right now and then."""
    model = llava()
    torch.manual_seed(1)
    for parameter in list(model.parameters())[-8:]:
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


HELP = {
    "lookup": lambda: {"prompt_lookup_num_tokens": 3},
    "draft": lambda: {"assistant_model": draft()},
}


class Fixed(Asker):
    """Its own prompt goes on with words of its own, however many drafts are thrown away."""

    def __call__(self, input_ids, scores):
        rows, step = len(self.second.inputs["input_ids"]), len(self.second.logits)
        self.second.ask(torch.full((rows, 1), 5 + step) if step else None)
        return scores


@pytest.mark.parametrize("help", HELP)
@pytest.mark.parametrize("second", ["shorter", "two pictures"])
@pytest.mark.parametrize("cached", [True, False], ids=["second cached", "second uncached"])
@pytest.mark.parametrize("reselect", [False, True], ids=["once", "reselect"])
@torch.no_grad()
def test_assisted_decoding_while_a_second_prompt_is_read(help, second, cached, reselect):
    model, inputs, spec, options = shared(), first(), "fastv", HELP[help]()
    asked = Second(model, SECONDS[second](), cached)
    with pruning(model, spec, reselect=reselect) as report:
        words, logits = generate(model, inputs, Fixed(asked), steps=STEPS, **options)
    assert len(asked.logits) >= STEPS
    assert report.num_kept == KEPT
    with pruning(model, spec, reselect=reselect) as alone:
        greedy, plain = generate(model, inputs, steps=STEPS)
    with hiding(model, layer_of(spec), dropped(report, inputs)):
        full, expected = generate(model, inputs, steps=STEPS)
    assert torch.equal(words, greedy)
    assert torch.equal(words, full)
    close(logits, expected)
    close(plain, expected)
    assert said(report)["samples"] == said(alone)["samples"]
    with pruning(model, spec, reselect=reselect):
        close(asked.logits, asked.again().logits)


@pytest.mark.parametrize("spec", ["fastv", "adaptprune"])
@torch.no_grad()
def test_a_draft_that_is_pruned_itself(spec):
    """Contexts of two models within one generate()."""
    model, inputs, helper = shared(), first(), draft()
    asked = Second(helper, SECONDS["longer"](), True)
    with pruning(model, spec) as report, pruning(helper, "random:layer=0") as other:
        words, logits = generate(model, inputs, Fixed(asked), steps=STEPS, assistant_model=helper)
    with hiding(model, layer_of(spec), dropped(report, inputs)):
        full, expected = generate(model, inputs, steps=STEPS)
    close(logits, expected)
    assert torch.equal(words, full)
    assert report.num_kept == KEPT
    assert other.prompts > 0
    with pruning(helper, "random:layer=0"):
        close(asked.logits, asked.again().logits)
