"""What engines are asked for is done or refused, never left out without a word."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adaptprune.engines import LocalEngine, Pruning, RemoteEngine, Sampling
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.client import Cost, ServedModel
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import columns
from adaptprune.hooks.seams.calls import ends_of
from adaptprune.hooks.sharing import Encoded
from adaptprune.prompts import Turn, question
from adaptprune.testing.zoo import SPECIMENS

TURNS = question("w1 w2 w3")


@pytest.fixture
def one():
    return SPECIMENS["llava"]("sdpa")


class Served:
    """A server's client that notes what it is asked."""

    url = "http://server"

    def __init__(self):
        self.requests = []

    def models(self):
        return [ServedModel("m", ("fastv",))]

    def stream(self, request):
        self.requests.append(request)
        yield Cost()


@pytest.mark.parametrize("penalty", [None, 5.0])
def test_a_repetition_penalty_is_the_same_alone_and_in_a_batch(one, penalty):
    one.model.generation_config.repetition_penalty = None
    sampling = Sampling(12, temperature=0.0, repetition_penalty=penalty)
    alone = LocalEngine(one.model, one.processor).ask(TURNS, sampling, Pruning("none")).text
    batch = Engine("tiny", one.model, one.processor)
    batch.start()
    try:
        assert alone == batch.ask(TURNS, sampling).text
    finally:
        batch.stop()
    words = alone.split()
    assert (len(set(words)) == len(words)) == (penalty is not None)


def test_among_the_likeliest_token_alone_there_is_no_choice(one):
    engine = LocalEngine(one.model, one.processor)
    greedy = engine.ask(TURNS, Sampling(8, temperature=0.0), Pruning("none")).text
    for options in ({"top_k": 1}, {"min_p": 1.0}):
        assert engine.ask(TURNS, Sampling(8, temperature=50.0, seed=3, **options), Pruning("none")).text == greedy


@pytest.mark.parametrize(("name", "value"), [("n", 2), ("ignore_eos", True), ("logprobs", 0), ("schema", "{}")])
def test_what_an_engine_cannot_do_is_refused(one, name, value):
    for engine in (LocalEngine(one.model, one.processor), RemoteEngine(Served())):
        with pytest.raises(AdaptPruneError, match=f"leave out {name}"):
            engine.ask(TURNS, Sampling(**{name: value}))


@pytest.mark.parametrize(("name", "value"), [("top_k", 3), ("min_p", 0.5), ("repetition_penalty", 1.5)])
def test_what_is_not_sent_is_refused(name, value):
    client = Served()
    with pytest.raises(AdaptPruneError, match=f"leave out {name}"):
        RemoteEngine(client).ask(TURNS, Sampling(**{name: value}))
    assert client.requests == []


def test_nothing_is_set_without_a_method(one):
    wrong = Pruning("none", keep_ratio=0.5)
    client = Served()
    for engine in (
        LocalEngine(one.model, one.processor),
        Engine("tiny", one.model, one.processor),
        RemoteEngine(client),
    ):
        with pytest.raises(AdaptPruneError, match="leave out keep_ratio"):
            engine.check(wrong)
        with pytest.raises(AdaptPruneError, match="leave out keep_ratio"):
            engine.ask(TURNS, None, wrong)
    assert client.requests == []


def test_questions_after_an_error_are_not_taken_for_those_before(one):
    asker = Asker(one.model, one.processor, "model", 2)
    (column, *_) = columns(["random"], [0.5])
    said = []
    for words in ("w1 w2", "w30 w31 w32 w33"):
        with asker:
            (answer,), _ = asker.converse([question(words)], ["none"], column, 6)  # and no `forget`, as after an error
            said.append((answer.prompt_tokens, answer.text))
    assert said[0][0] + 2 == said[1][0]


def test_an_encode_call_within_another_is_part_of_it(one):
    base = one.model.model
    inner = base.get_image_features
    base.get_video_features = lambda pixels: ["video", base.get_image_features(pixels)]
    base.get_image_features = lambda pixels: ("image", pixels)
    encoded = Encoded(SimpleNamespace(device=one.model.device), base, 4)
    pictures, found = [object()], []
    for _ in range(2):
        with encoded.of(pictures):
            found.append(base.get_video_features(1))
    assert found == [["video", ("image", 1)]] * 2
    encoded.close()
    del base.get_video_features, base.get_image_features
    assert base.get_image_features.__func__ is inner.__func__


def test_an_answer_that_ends_with_its_last_token_is_whole(one):
    """Alone and in a batch, also where that is the last one it may have, and somebody stops it then."""
    one.model.generation_config.suppress_tokens = [*range(one.model.config.get_text_config().vocab_size - 1)]
    end = one.model.config.get_text_config().vocab_size - 1  # all that it can say
    engine, batch = LocalEngine(one.model, one.processor), Engine("tiny", one.model, one.processor)
    batch.start()
    try:
        for room, ends, finish in ((1, end, "stop"), (3, [end, 1], "stop"), (1, None, "length"), (3, None, "length")):
            one.model.generation_config.eos_token_id = ends
            batch._batch.eos = ends_of(one.model)
            sampling = Sampling(room, temperature=0.0)
            assert engine.ask(TURNS, sampling, Pruning("none")).finish == finish
            assert batch.ask(TURNS, sampling).finish == finish
        one.model.generation_config.eos_token_id = end
        assert engine.ask(TURNS, Sampling(3), Pruning("none"), stopping=lambda: True).finish == "stop"
        one.model.generation_config.eos_token_id = None
        assert engine.ask(TURNS, Sampling(3), Pruning("none"), stopping=lambda: True).finish == "stopped"
    finally:
        batch.stop()


def test_the_cache_is_kept_whatever_the_checkpoint_says(one):
    """Training with checkpointed gradients leaves use_cache=False behind."""
    one.model.generation_config.use_cache = False
    engine = LocalEngine(one.model, one.processor)
    turns = [*TURNS]
    for words in ("w4", "w5 w6"):
        answer = engine.ask(turns, Sampling(4, temperature=0.0), Pruning("none"))
        turns += [Turn("assistant", answer.text), Turn("user", words)]
    assert answer.read_tokens < answer.prompt_tokens


def test_an_answer_that_ends_with_an_ordinary_word_does_not_say_it(one):
    """Some checkpoints' end of text is no special token: no engine shows it."""
    model, turns = one.model, question("w3 w4 w5", one.pictures(1))
    local, pieces = LocalEngine(model, one.processor), []
    whole = local.ask(turns, Sampling(8, temperature=0.0), Pruning("none")).text.split()
    last = next(place for place in range(2, 8) if whole[place] not in whole[:place])
    model.generation_config.eos_token_id = one.processor.tokenizer.convert_tokens_to_ids(whole[last])
    answer = local.ask(turns, Sampling(8, temperature=0.0), Pruning("none"), on_text=pieces.append)
    local.close()
    assert answer.text.split() == "".join(pieces).split() == whole[:last]
    assert answer.finish == "stop"
    engine = Engine("tiny", model, one.processor)
    engine.start()
    assert engine.ask(turns, Sampling(8, temperature=0.0), Pruning("none")).text == answer.text
    with pytest.raises(AdaptPruneError, match="outside the model"):
        engine.ask([], Sampling(8), Pruning("random:layer=99"))
    engine.close()
