"""Memory that runs out while a prompt joins the batch costs that request alone."""

from __future__ import annotations

import pytest
import torch

from adaptprune.engines.batch import layer
from adaptprune.engines.batch.ask import Question, ask_all
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.errors import EngineError
from adaptprune.engines.sampling import Sampling
from adaptprune.prompts import Turn
from adaptprune.testing.zoo import SPECIMENS


def asked(one) -> list[Question]:
    """Four prompts of different lengths, the second and third read while the first is being answered."""
    picture = one.pictures(1)[0]
    return [
        Question([Turn("user", [picture, "w1 " * length])], Sampling(12, temperature=0.0)) for length in (1, 90, 6, 40)
    ]


@pytest.fixture
def engine(request):
    one = SPECIMENS[request.param]("sdpa")
    made = Engine("tiny", one.model, one.processor, EngineLimits(8))
    made.start()
    yield one, made
    made.stop()


@pytest.mark.parametrize("engine", ["llava", "gemma3", "qwen3_5", "lfm2_vl"], indirect=True)
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_row_that_cannot_join(engine, monkeypatch, allowed):
    one, running = engine
    expected, _ = ask_all(running, asked(one))
    left = [allowed]
    grown = layer._grown

    def failing(old, rows, columns, used):
        if used == 1 and left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                raise RuntimeError("not enough memory: you tried to allocate too much")
        return grown(old, rows, columns, used)

    monkeypatch.setattr(layer, "_grown", failing)
    found, _ = ask_all(running, asked(one))
    assert not left
    failed = [place for place, answer in enumerate(found) if isinstance(answer, EngineError)]
    assert failed == [1]
    assert found[1].code == "out_of_memory"
    for place in (0, 2, 3):
        assert found[place][0].text == expected[place][0].text


@pytest.mark.parametrize("engine", ["llava"], indirect=True)
def test_scores_that_find_no_memory(engine, monkeypatch):
    """Only after the model has run: the token before would be read twice."""
    one, running = engine
    expected, _ = ask_all(running, asked(one))
    left, real = [6], torch.Tensor.float

    def failing(tensor, *args, **options):
        if tensor.ndim == 2 and tensor.shape[-1] == one.model.config.get_text_config().vocab_size and len(tensor) > 2:
            left[0] -= 1
            if not left[0]:
                raise RuntimeError("not enough memory: you tried to allocate too much")
        return real(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "float", failing)
    found, _ = ask_all(running, asked(one))
    monkeypatch.undo()
    assert left[0] <= 0
    said = [None if isinstance(answer, EngineError) else answer[0].text for answer in found]
    assert said == [*(answer[0].text for answer in expected[:3]), None]
