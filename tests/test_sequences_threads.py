"""Threads and contexts side by side: each generate() as if it were alone."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaptprune.testing.oracle import hiding
from tests.asking import (
    KEPT,
    SECONDS,
    STEPS,
    Asker,
    Second,
    Stopping,
    close,
    first,
    generate,
    layer_of,
    pruning,
    said,
    shared,
)
from tests.tiny import batch, dropped, prompt

RULES = pytest.mark.parametrize("spec", ["fastv", "adaptprune", "random:layer=0"])
USE_CACHE = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
RESELECT = pytest.mark.parametrize("reselect", [False, True], ids=["once", "reselect"])


def together(*works):
    """Results of functions that run in threads of their own."""
    found: dict[int, object] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = works[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(works)
    return [found[number] for number in range(len(works))]


def in_step(parties: int):
    """A processor that waits for the others after every token."""
    barrier = threading.Barrier(parties, timeout=30)

    def wait(ids, scores):
        barrier.wait()
        return scores

    return wait


@RULES
@USE_CACHE
@RESELECT
@torch.no_grad()
def test_two_threads_in_step(spec, use_cache, reselect):
    model = shared()
    prompts = [first(), SECONDS["longer"]()]
    wait = in_step(2)
    with pruning(model, spec, reselect=reselect):
        found = together(*[lambda one=one: generate(model, one, wait, use_cache=use_cache) for one in prompts])
    for one, (words, logits) in zip(prompts, found, strict=True):
        with pruning(model, spec, reselect=reselect) as report:
            generate(model, one, use_cache=use_cache)
        with hiding(model, layer_of(spec), dropped(report, one)):
            full, expected = generate(model, one, use_cache=use_cache)
        close(logits, expected)
        assert torch.equal(words, full)


@torch.no_grad()
def test_more_threads_of_other_shapes():
    model = shared()
    prompts = [first(), SECONDS["two pictures"](), SECONDS["text"](), batch(prompt(1, 9), prompt(2, 14, 3))]
    with pruning(model, "fastv"):
        alone = [generate(model, one) for one in prompts]
        wait = in_step(len(prompts))
        found = together(*[lambda one=one: generate(model, one, wait) for one in prompts])
    for (words, logits), (line, expected) in zip(found, alone, strict=True):
        close(logits, expected)
        assert torch.equal(words, line)


@USE_CACHE
@torch.no_grad()
def test_each_thread_asks_a_second_prompt(use_cache):
    model, wait = shared(), in_step(2)
    prompts = [first(), SECONDS["longer"]()]
    asked = [Second(model, SECONDS["two pictures"](), True), Second(model, SECONDS["other pixels"](), False)]
    works = [
        lambda one=one, second=second: generate(model, one, Asker(second), wait, use_cache=use_cache)
        for one, second in zip(prompts, asked, strict=True)
    ]
    with pruning(model, "fastv"):
        found = together(*works)
        for one, (words, logits) in zip(prompts, found, strict=True):
            line, expected = generate(model, one, use_cache=use_cache)
            close(logits, expected)
            assert torch.equal(words, line)
        for second in asked:
            assert len(second.logits) == STEPS
            close(second.logits, second.again().logits)


@pytest.mark.parametrize("cached", [True, False], ids=["second cached", "second uncached"])
@USE_CACHE
@torch.no_grad()
def test_a_worker_reads_the_second_prompt(cached, use_cache):
    """generate() in one thread, the model it asks in another."""
    model, inputs = shared(), first()
    asked = Second(model, SECONDS["longer"](), cached)

    def ask(token):
        with torch.no_grad():
            return asked.ask(token)

    with ThreadPoolExecutor(1) as pool:

        def processor(ids, scores):
            pool.submit(ask, ids[:, -1:] if asked.logits else None).result()
            return scores

        with pruning(model, "fastv"):
            words, logits = generate(model, inputs, processor, use_cache=use_cache)
    assert len(asked.logits) == STEPS
    with pruning(model, "fastv") as report:
        generate(model, inputs, use_cache=use_cache)
    with hiding(model, 2, dropped(report, inputs)):
        full, expected = generate(model, inputs, use_cache=use_cache)
    close(logits, expected)
    assert torch.equal(words, full)
    with pruning(model, "fastv"):
        close(asked.logits, asked.again().logits)


@pytest.mark.parametrize("specs", [("fastv", "fastv"), ("adaptprune", "random:layer=0"), ("grid:layer=3", "fastv")])
@RESELECT
@torch.no_grad()
def test_contexts_of_two_models(specs, reselect):
    """One within the other, both asked in turns: each has its own rule, its own report."""
    models = [shared(), copy.deepcopy(shared())]
    prompts = [first(), SECONDS["two pictures"]()]
    alone = []
    for model, spec, one in zip(models, specs, prompts, strict=True):
        with pruning(model, spec, reselect=reselect) as report:
            alone.append((*generate(model, one), said(report)))
    with pruning(models[0], specs[0], reselect=reselect) as outer:
        with pruning(models[1], specs[1], reselect=reselect) as inner:
            for _ in range(2):
                for model, one, report, (words, logits, described) in zip(
                    models, prompts, (outer, inner), alone, strict=True
                ):
                    line, found = generate(model, one)
                    close(found, logits)
                    assert torch.equal(line, words)
                    assert said(report) == described
        line, found = generate(models[0], prompts[0])
        close(found, alone[0][1])
        close(generate(models[1], prompts[0])[1], generate(copy.deepcopy(models[1]), prompts[0])[1])  # unpruned again
    assert outer.prompts == 3
    assert inner.prompts == 2


@USE_CACHE
@torch.no_grad()
def test_each_model_asks_the_other(use_cache):
    """Within one's generate() the other generates, and asks the first."""
    one, two = shared(), copy.deepcopy(shared())
    inputs, other = first(), SECONDS["longer"]()
    back = Second(one, SECONDS["two pictures"](), True)
    with pruning(one, "fastv") as report, pruning(two, "fastv:layer=3") as second:
        alone = generate(two, other, steps=2)
        stopping = Stopping(lambda: generate(two, other, Asker(back), steps=2))
        words, logits = generate(one, inputs, use_cache=use_cache, stopping_criteria=[stopping])
    assert len(stopping.found) == STEPS
    assert len(back.logits) == 2 * STEPS
    assert said(report)["samples"][0]["num_kept"] == said(second)["samples"][0]["num_kept"] == KEPT
    with hiding(one, 2, dropped(report, inputs)):
        full, expected = generate(one, inputs, use_cache=use_cache)
    close(logits, expected)
    assert torch.equal(words, full)
    for line, found in stopping.found:
        close(found, alone[1])
        assert torch.equal(line, alone[0])
    with pruning(one, "fastv"):
        close(back.logits, back.again().logits)
