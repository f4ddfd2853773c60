"""Log probabilities: exact, of the tokens whose text is shown, and nothing else of the answer changes."""

from __future__ import annotations

import math
import random

import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adaptprune
from adaptprune.engines.batch.jobs import Row
from adaptprune.engines.batch.scores import TokenScores
from adaptprune.engines.batch.vocabulary import Vocabulary
from adaptprune.engines.sampling import Sampling
from adaptprune.hooks.seams import cache as kv
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from tests import writers
from tests.serving import data_url, live, picture, tiny, user


@pytest.fixture(scope="module", params=["byte-level", "SentencePiece"])
def server(request):
    make = {"byte-level": writers.byte_level, "SentencePiece": writers.sentencepiece}[request.param]
    engine = writers.engine(make(), max_batch=16)
    engine.model.generation_config.eos_token_id = None
    engine._batch.eos = frozenset()
    with live(engine) as server:
        yield server


def create(server, text: str = "what is this", *urls: str, **options: object):
    return server.client().chat.completions.create(model="writer", messages=user(text, *urls), **options)


@pytest.mark.parametrize("method", ["none", "adaptprune:keep_ratio=0.25"])
@pytest.mark.parametrize("temperature", [0, 1.3])
def test_they_are_those_of_a_plain_forward(server, method, temperature):
    """Before temperature and top_p, which change what is chosen and not what the model thinks of it."""
    engine, image = server.engines["writer"], picture(4)
    options = {} if temperature == 0 else {"top_p": 0.5, "seed": 7}
    answer = create(
        server, "what is this", data_url(image), max_tokens=15, logprobs=True, top_logprobs=5, temperature=temperature,
        extra_body={"pruning": {"method": method}}, **options,
    )  # fmt: skip
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 15
    inputs = engine.prompter.inputs([Turn("user", [image, "what is this"])])
    words, ids = Vocabulary(engine.processor.tokenizer).tokens, inputs["input_ids"]
    sampling = Sampling(15, temperature=temperature, logprobs=0, **options)
    chosen = chosen_tokens(content, words, engine, image, sampling, method)
    for place, (entry, token) in enumerate(zip(content, chosen, strict=True)):
        logs = forward(engine.model, inputs, chosen[:place], method)
        best = logs.topk(5)
        assert entry.logprob == pytest.approx(float(logs[token]), abs=2e-5)
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=2e-5)
        assert [bytes(one.bytes) for one in entry.top_logprobs] == [
            written(words, index) for index in best.indices.tolist()
        ]
    assert ids.shape[1] == answer.usage.prompt_tokens


def chosen_tokens(content, words, engine, image, sampling: Sampling, method: str) -> list[int]:
    """The ids behind an answer, from asking again: different tokens may write the same bytes."""
    found: list[int] = []
    accept = Row.accept

    def noted(row: Row, token: int, scores: torch.Tensor):
        found.append(token)
        return accept(row, token, scores)

    pruner = None if method == "none" else make_pruner(method)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Row, "accept", noted)
        list(engine.stream([Turn("user", [image, "what is this"])], sampling, pruner=pruner))
    assert [bytes(entry.bytes) for entry in content] == [written(words, token) for token in found]
    return found


def written(words: list[bytes], token: int) -> bytes:
    """What a token writes; nothing, if it only fills up the model's vocabulary."""
    return words[token] if token < len(words) else b""


@torch.inference_mode()
def forward(model, inputs, written: list[int], method: str) -> torch.Tensor:
    """Log probabilities of the next token; without pruning in one forward without a cache."""
    ids = inputs["input_ids"]
    if method == "none":
        more = torch.cat([ids, torch.tensor([written], dtype=ids.dtype)], 1)
        mask = torch.ones_like(more)
        output = model(**{**inputs, "input_ids": more, "attention_mask": mask})
        return output.logits[0, -1].float().log_softmax(-1)
    with adaptprune.prune(model, method):
        output = model(**inputs, use_cache=True)
        for token in written:
            output = model(
                input_ids=torch.tensor([[token]]), **kv.handing(model, output.past_key_values), use_cache=True
            )
    return output.logits[0, -1].float().log_softmax(-1)


def test_streams_list_the_same_tokens(server):
    options = {"max_tokens": 40, "logprobs": True, "top_logprobs": 2, "temperature": 1.2, "seed": 3, "n": 2}
    whole = create(server, **options)
    streamed: list[list] = [[], []]
    texts = ["", ""]
    for chunk in create(server, stream=True, **options):
        (choice,) = chunk.choices
        listed = choice.logprobs.content if choice.logprobs else []
        assert choice.delta.content or not listed  # tokens come with their text
        texts[choice.index] += choice.delta.content or ""
        streamed[choice.index] += listed
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        for one, other in zip(streamed[choice.index], choice.logprobs.content, strict=True):
            assert one.bytes == other.bytes
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert len(choice.logprobs.content) == 40


def test_what_a_stop_string_cuts_off_is_not_listed(checkpoint):
    """A token is listed if its text begins before the cut: a word here, with the space in front of it."""
    with live(tiny(checkpoint)) as server:

        def ask(**options: object):
            options = {"model": "tiny", "messages": user("what is this"), "max_tokens": 8, "logprobs": True, **options}
            return server.client().chat.completions.create(**options)

        free = ask().choices[0]
        text, words = free.message.content, [token.token for token in free.logprobs.content]
        assert text == " ".join(words)
        begins = [len(" ".join(words[:place])) for place in range(len(words))]
        for start in range(len(text) - 2):
            stop = text[start : start + 3]
            cut = text.index(stop)
            expected = [word for word, begin in zip(words, begins, strict=True) if begin < cut]
            (choice,) = ask(stop=stop).choices
            assert choice.message.content == text[:cut]
            assert [token.token for token in choice.logprobs.content] == expected
            chunks = [chunk.choices[0] for chunk in ask(stop=stop, stream=True)]
            assert [token.token for one in chunks if one.logprobs for token in one.logprobs.content] == expected


def test_the_end_of_an_answer_is_no_token_of_it():
    with live(writers.engine(writers.byte_level())) as server:
        answer = create(server, max_tokens=80, logprobs=True, temperature=1.5, seed=0, n=24)
        ends = [choice.finish_reason == "stop" for choice in answer.choices]
        assert any(ends)
        assert not all(ends)
        assert sum(len(choice.logprobs.content) for choice in answer.choices) == answer.usage.completion_tokens - sum(
            ends
        )
        for choice in answer.choices:
            assert "</s>" not in [one.token for one in choice.logprobs.content]


def test_nothing_is_listed_or_computed_unless_asked_for(server, monkeypatch):
    def broken(*args: object) -> None:
        raise AssertionError("not asked for")

    monkeypatch.setattr(TokenScores, "note", broken)
    monkeypatch.setattr(Vocabulary, "tokens", property(broken))
    assert create(server, max_tokens=5).choices[0].logprobs is None
    assert create(server, max_tokens=5, logprobs=False).choices[0].logprobs is None


def test_asking_for_them_does_not_change_the_answer(server):
    for seed in range(4):
        options = {"max_tokens": 30, "temperature": 1.0, "seed": seed}
        plain, listed = create(server, **options), create(server, logprobs=True, top_logprobs=20, **options)
        assert plain.choices[0].message.content == listed.choices[0].message.content
        for one in listed.choices[0].logprobs.content:
            values = [other.logprob for other in one.top_logprobs]
            assert len(values) == 20
            assert values == sorted(values, reverse=True)
            assert math.exp(values[0]) <= 1
            assert one.logprob <= values[0]


@pytest.mark.parametrize("options", [{"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 3}, {"logprobs": 5}])
def test_what_is_refused(server, options):
    with pytest.raises(openai.BadRequestError):
        create(server, max_tokens=2, **options)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_tokens_are_released_with_their_first_character(lengths, data):
    """Against a list: token i writes lengths[i] characters; what was shown so far is any prefix of all of them."""

    class Words:
        tokens = [b"x"] * 50

    scores, begins, place = TokenScores(Words(), 0), [], 0
    for index, length in enumerate(lengths):
        begins.append(place)
        scores.note(index, torch.zeros(50), place)
        place += length
    cut = data.draw(st.integers(0, place))
    shown, listed = 0, 0
    rng = random.Random(cut)
    while shown < cut:
        step = rng.randint(1, cut - shown)
        listed += len(scores.release("x" * step, rest=False))
        shown += step
    expected = next((index for index, begin in enumerate(begins) if begin >= cut), len(begins))
    assert listed == expected
    assert listed + len(scores.release("", rest=True)) == len(lengths)
