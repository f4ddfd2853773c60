"""The local engine goes on over its cache only where that answers as reading everything does."""

from __future__ import annotations

import pytest

from adaptprune.engines import LocalEngine, Pruning, Sampling
from adaptprune.prompts import Turn
from adaptprune.testing.zoo import SPECIMENS

SAMPLING = Sampling(6, temperature=0.0)


@pytest.fixture
def opened():
    engines = []

    def make(family: str):
        one = SPECIMENS[family]("sdpa")
        engines.append(LocalEngine(one.model, one.processor))
        return one, engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("method", ["none", "random"])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "gemma3", "paligemma"])
def test_a_third_picture_and_more_words(opened, family, method):
    """LLaVA-OneVision cuts a picture into tiles only if there is no other; PaliGemma's words see later ones."""
    one, engine = opened(family)
    pruning = Pruning(method, None if method == "none" else 0.5)
    first, second, third = one.pictures(3)
    turns: list[Turn] = []
    for parts in ([first, "w1 w2"], ["w3 w4 w5 w6 w7 w8"], [second, "w9"], [third, "w10 w11"], ["w12"]):
        turns.append(Turn("user", parts))
        went_on = engine.ask(turns, SAMPLING, pruning)
        kept = engine._cache, engine._held, engine._images, engine._visual_end
        engine.reset()
        anew = engine.ask(turns, SAMPLING, pruning)
        assert (went_on.text, went_on.visual_tokens) == (anew.text, anew.visual_tokens)
        engine._cache, engine._held, engine._images, engine._visual_end = kept
        turns.append(Turn("assistant", [went_on.text]))
    if family == "llava":
        assert went_on.read_tokens < 20 < went_on.prompt_tokens


def test_pictures_are_known_by_their_looks(opened):
    one, engine = opened("llava")
    picture, pruning = one.pictures(1)[0], Pruning("none")
    turns = [Turn("user", [picture, "w1 w2"])]
    first = engine.ask(turns, SAMPLING, pruning)
    again = engine.ask([Turn("user", [picture.copy(), "w1 w2"])], SAMPLING, pruning)
    assert (again.text, again.read_tokens) == (first.text, 1)
    picture.paste((0, 0, 0), (0, 0, *picture.size))
    drawn = engine.ask(turns, SAMPLING, pruning)
    engine.reset()
    assert drawn.text == engine.ask(turns, SAMPLING, pruning).text != first.text
    assert drawn.read_tokens == drawn.prompt_tokens
