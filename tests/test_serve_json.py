"""Answers that have to be JSON of a schema, from models that know nothing: only the grammar can make them fit."""

from __future__ import annotations

import json
import sys
import time

import httpx
import jsonschema_rs
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.grammar import Grammars
from adaptprune.engines.batch.vocabulary import ByteText, Vocabulary
from adaptprune.engines.errors import EngineError
from adaptprune.engines.sampling import Sampling
from tests import writers
from tests.serving import data_url, live, picture, tiny, user
from tests.test_serve_batch import ask, empty, request

KINDS = {"byte-level": writers.byte_level, "SentencePiece": writers.sentencepiece}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "light blue", "größer"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS = {
    "an object": PERSON,
    "a choice": {"enum": ["a", "b c", 'quo"te']},
    "a boolean": {"type": "boolean"},
    "a number": {"type": "integer", "minimum": 10, "maximum": 99},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    "a date": {"type": "string", "format": "date"},
    "nested": {"type": "array", "items": PERSON, "minItems": 2, "maxItems": 2},
    "alternatives": {
        "anyOf": [{"const": 1}, {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}]
    },
    "a reference": {"$ref": "#/$defs/person", "$defs": {"person": PERSON}},
}


@pytest.fixture(scope="module", params=list(KINDS))
def server(request):
    with live(writers.engine(KINDS[request.param](), max_batch=16)) as server:
        yield server


def wanted(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.mark.parametrize("name", list(SCHEMAS))
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_fit_their_schema(server, name, temperature):
    answer = server.client().chat.completions.create(
        model="writer", messages=user("what is this", data_url(picture(1))), response_format=wanted(SCHEMAS[name]),
        temperature=temperature, seed=3, n=3, max_tokens=400,
    )  # fmt: skip
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema_rs.validate(SCHEMAS[name], json.loads(choice.message.content))
    if temperature and name in ("an object", "a number", "nested"):
        assert len({choice.message.content for choice in answer.choices}) > 1


def test_any_object(server):
    for seed in range(4):
        (choice,) = server.client().chat.completions.create(
            model="writer", messages=user("a"), response_format={"type": "json_object"}, temperature=1, seed=seed,
            max_tokens=120,
        ).choices  # fmt: skip
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"
            assert choice.message.content.startswith("{")


def test_streams_and_other_parameters(server):
    schema = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 20, "maxItems": 20}
    options = {"top_p": 0.9, "extra_body": {"top_k": 1, "repetition_penalty": 1.3, "ignore_eos": True}}
    chunks = server.client().chat.completions.create(
        model="writer", messages=user("a"), response_format=wanted(schema), temperature=1, stream=True,
        logprobs=True, **options,
    )  # fmt: skip
    text, tokens, finish = "", [], None
    for chunk in chunks:
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        tokens += choice.logprobs.content if choice.logprobs else []
        finish = choice.finish_reason or finish
    assert finish == "stop"
    assert len(json.loads(text)) == 20
    assert "".join(token.token for token in tokens) == text


def test_an_answer_that_is_cut_says_so(server):
    (choice,) = server.client().chat.completions.create(
        model="writer", messages=user("a"), response_format=wanted(SCHEMAS["nested"]), max_tokens=4
    ).choices  # fmt: skip
    assert choice.finish_reason == "length"
    assert choice.message.content.startswith("[{")


def test_free_answers_in_the_same_batch_are_what_they_are_alone(server):
    """Rows with a grammar change nothing about their neighbours."""
    engine = server.engines["writer"]
    requests = [request(seed)[0] for seed in range(6)]
    alone = [ask(engine, turns, Sampling(30, temperature=0), pruner=None)[0] for turns in requests]
    import threading

    found: list = [None] * 12
    schema = json.dumps(PERSON)

    def work(place: int) -> None:
        sampling = Sampling(60, temperature=0, schema=schema) if place % 2 else Sampling(30, temperature=0)
        found[place] = ask(engine, requests[place // 2], sampling, pruner=None)[0]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[::2] == alone
    for text in found[1::2]:
        assert text.startswith('{"name":')
    empty(engine)


BAD = {
    "Invalid type: objct": {"type": "objct"},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "Unknown format: nonsense": {"type": "string", "format": "nonsense"},
    "regex parse error": {"type": "string", "pattern": "("},
    "does not exist": {"$ref": "#/nowhere"},
    "does not fetch": {"$ref": "http://127.0.0.1:1/schema"},
    "minLength (5) is greater": {"type": "string", "minLength": 5, "maxLength": 2},
    "multipleOf": {"type": "integer", "multipleOf": 9_999_991},
    "characters, more than": {"enum": ["a" * 120_000]},
    "too large": {"allOf": [{"type": "object", "properties": {f"k{i}": {"type": "string"}}} for i in range(1500)]},
    "nothing that this model's tokens can write": {"$ref": "#"},
}


@pytest.mark.parametrize("message", list(BAD))
def test_schemas_that_cannot_be_used(server, message):
    start = time.monotonic()
    with pytest.raises(openai.BadRequestError) as error:
        server.client().chat.completions.create(
            model="writer", messages=user("a"), response_format=wanted(BAD[message])
        )
    assert time.monotonic() - start < 5
    assert error.value.body["code"] == "bad_schema"
    assert error.value.body["param"] == "response_format"
    assert message in error.value.body["message"]
    assert "\n" not in error.value.body["message"]
    assert len(error.value.body["message"]) < 500


HARD = {
    "steps in common": {"allOf": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}]},
    "a step among fractions": {"type": "number", "multipleOf": 0.0999983},
    "a range of numbers": {"type": "integer", "minimum": -(2**63), "maximum": 2**63},
    "a long pattern": {"type": "string", "pattern": "(a|b)*a(a|b){1000}"},
    "repeated repeats": {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    "a very long string": {"type": "string", "minLength": 10**6},
    "many items": {"type": "array", "minItems": 10**6},
    "many keys": {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(2000)}},
    "references to references": {
        "$defs": {
            **{f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)},
            "d30": {"type": "integer"},
        },
        "$ref": "#/$defs/d0",
    },
    "alternatives that overlap": {
        "anyOf": [{"type": "string", "pattern": f"(.*[a-{chr(98 + i)}]){{{i + 3}}}"} for i in range(20)]
    },
}


@pytest.mark.parametrize("name", list(HARD))
def test_hard_schemas_hold_nobody_up(server, name):
    """Answered or refused, in seconds; each step is bounded, too."""
    body = {"model": "writer", "messages": user("a"), "response_format": wanted(HARD[name]), "max_tokens": 20}
    start = time.monotonic()
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "temperature": 1}, timeout=60)
    if answer.status_code != 200:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_schema")
    assert time.monotonic() - start < 8
    assert server.client().chat.completions.create(model="writer", messages=user("a"), max_tokens=2).choices


def test_a_vocabulary_that_cannot_write_json(checkpoint):
    with live(tiny(checkpoint)) as server:
        with pytest.raises(openai.BadRequestError, match="nothing that this model's tokens can write fits it"):
            server.client().chat.completions.create(
                model="tiny", messages=user("a"), response_format={"type": "json_object"}
            )
        assert server.client().chat.completions.create(model="tiny", messages=user("a"), max_tokens=2).choices


def test_the_pocket_model_writes_json():
    """Its word pieces hold no spaces: the answer is put together from what the grammar has seen."""
    with live(Engine("pocket", *adaptprune.load())) as server:
        schema = {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "orange"]}, "n": {"type": "integer", "maximum": 99}},
            "required": ["colour", "n"],
            "additionalProperties": False,
        }
        for temperature in (0, 1):
            (choice,) = server.client().chat.completions.create(
                model="pocket", messages=user("what is this?"), response_format=wanted(schema), temperature=temperature
            ).choices  # fmt: skip
            jsonschema_rs.validate(schema, json.loads(choice.message.content))


def test_without_the_library_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EngineError, match=r"JSON output needs llguidance.*pip install 'adaptprune\[json\]'"):
        Grammars(Vocabulary(writers.byte_level())).compile("{}")


# -- vocabularies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
@given(text=st.text(max_size=30))
def test_the_bytes_of_tokens_make_up_the_text(kind, text):
    tokenizer = TOKENIZERS[kind]
    vocabulary = VOCABULARIES[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(vocabulary.tokens[token] for token in ids if token not in vocabulary.special)
    shown = ByteText(vocabulary)
    assert "".join(map(shown.push, ids)) + shown.flush() == joined.decode()
    assert joined.decode().removeprefix(" " if kind == "SentencePiece" else "") == text


TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
VOCABULARIES = {kind: Vocabulary(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
