"""What today's clients send out of habit: accepted where it changes nothing, refused by name where it would."""

from __future__ import annotations

import openai
import pytest

from adaptprune.images import open_image
from tests.serving import data_url, live, pocket_engine, tiny, user

QUESTION = "What colour is the triangle?"


@pytest.fixture(scope="module")
def pocket():
    with live(pocket_engine()) as server:
        yield server


@pytest.fixture(scope="module")
def cloth() -> str:
    return data_url(open_image("example:cloth"))


def ask(server, messages: list, **extra: object):
    return server.client().chat.completions.create(model="pocket", messages=messages, extra_body=extra)


def shown(url: str, **more: object) -> list[dict]:
    """A picture and a question, with what a client adds to the picture's part."""
    part = {"type": "image_url", "image_url": {"url": url}, **more}
    return [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]


#: How a picture and its question are sent.
PICTURES = {
    "a name and an id": lambda url: [{**user(QUESTION, url)[0], "name": "me", "id": "msg_1"}],
    "cache_control": lambda url: shown(url, cache_control={"type": "ephemeral"}),
    "cache_control of a message": lambda url: [{**user(QUESTION, url)[0], "cache_control": {"type": "ephemeral"}}],
    "detail": lambda url: shown(url, image_url={"url": url, "detail": "original"}),
    "detail, null": lambda url: shown(url, image_url={"url": url, "detail": None}),
    "LiteLLM's format": lambda url: shown(url, image_url={"url": url, "format": "image/png"}),
    "a plain address": lambda url: shown(url, image_url=url),
    "parts of the Responses API": lambda url: [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": url, "detail": "auto"},
                {"type": "input_text", "text": QUESTION},
            ],
        }
    ],
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_picture_as_clients_send_it(pocket, cloth, name):
    answer = ask(pocket, PICTURES[name](cloth))
    assert answer.choices[0].message.content == "orange"
    assert answer.usage.pruning["visual_tokens"] == 576


def earlier(**more: object) -> list[dict]:
    """A conversation with an earlier answer, as a client keeps it."""
    return [*user("hello"), {"role": "assistant", "content": "hi", **more}, *user("hello again")]


ANSWERS = {
    "as the official client keeps it": {
        "refusal": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "annotations": [{"type": "url_citation"}],
    },
    "no tools": {"tool_calls": []},
    "reasoning": {"reasoning_content": "I think.", "reasoning": "I think.", "reasoning_details": [{"type": "a"}]},
    "LiteLLM's": {"provider_specific_fields": {"a": 1}, "thinking_blocks": [], "images": []},
    "as parts": {"content": [{"type": "text", "text": "hi", "annotations": []}]},
    "as parts of the Responses API": {"content": [{"type": "output_text", "text": "hi"}]},
    "an id": {"id": "msg_1", "index": 0, "name": "assistant"},
}


@pytest.mark.parametrize("name", list(ANSWERS))
def test_an_earlier_answer_as_clients_keep_it(pocket, name):
    plain = ask(pocket, earlier())
    found = ask(pocket, earlier(**ANSWERS[name]))
    assert found.choices[0].message.content == plain.choices[0].message.content
    assert found.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("content", [None, "", []])
def test_an_earlier_answer_without_content(pocket, content):
    assert (
        ask(pocket, earlier(content=content)).usage.prompt_tokens
        == ask(pocket, earlier(content="")).usage.prompt_tokens
    )


OPTIONS = {
    "nulls": dict.fromkeys(
        ["max_tokens", "n", "stop", "seed", "temperature", "top_p", "logprobs", "tools", "response_format", "pruning"]
    ),
    "nulls inside pruning": {"pruning": {"method": None, "keep_ratio": 0.25, "layer": None, "return_kept": None}},
    "values that mean not used": {
        "stop": [], "logit_bias": {}, "frequency_penalty": 0.0, "presence_penalty": 0, "n": 1, "best_of": 1,
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "min_tokens": 0,
        "stop_token_ids": [], "skip_special_tokens": True, "use_beam_search": False, "echo": False,
        "chat_template_kwargs": {}, "reasoning_effort": "none", "verbosity": "medium", "max_tokens": -1,
    },
    "labels": {
        "user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "flex", "parallel_tool_calls": True,
        "prompt_cache_key": "a", "prompt_cache_retention": "24h", "safety_identifier": "b",
    },
    "tools that may not be used": {
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none",
    },
    "a template's switch that this template has not": {"chat_template_kwargs": {"enable_thinking": False}},
    "how vLLM's users say it": {"add_generation_prompt": True, "continue_final_message": False},
    "response_format": {"response_format": {"type": "text"}},
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options_that_change_nothing(pocket, cloth, name):
    assert ask(pocket, user(QUESTION, cloth), **OPTIONS[name]).choices[0].message.content == "orange"


def test_stream_options_that_change_nothing(pocket, cloth):
    options = {"include_usage": True, "include_obfuscation": True, "continuous_usage_stats": False}
    chunks = pocket.client().chat.completions.create(
        model="pocket", messages=user(QUESTION, cloth), stream=True, stream_options=options
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "orange"


REFUSED = {
    "frequency_penalty is not supported": {"frequency_penalty": 0.5},
    "presence_penalty is not supported": {"presence_penalty": -1},
    "best_of is not supported": {"best_of": 3},
    "tools is not supported": {"tools": [{"type": "function"}], "tool_choice": "auto"},
    "functions is not supported": {"functions": [{"name": "f"}]},
    "tool_choice is not supported": {"tool_choice": "required"},
    "reasoning_effort is not supported": {"reasoning_effort": "high"},
    "min_tokens is not supported": {"min_tokens": 5},
    "stop_token_ids is not supported": {"stop_token_ids": [5]},
    "modalities is not supported": {"modalities": ["text", "audio"]},
    "'messages' would change the model's prompt": {"chat_template_kwargs": {"messages": []}},
    "top_k: input should be greater": {"top_k": -2},
    "repetition_penalty: input should be greater": {"repetition_penalty": 0},
    "continue_final_message=true does not fit the last message": {"continue_final_message": True},
    "add_generation_prompt=false does not fit the last message": {"add_generation_prompt": False},
    "unknown parameter 'grammar'": {"grammar": "root ::= a"},
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_would_change_the_answer_is_refused(pocket, message):
    with pytest.raises(openai.BadRequestError) as error:
        ask(pocket, user("hello"), **REFUSED[message])
    assert message in error.value.body["message"]


def test_a_refusal_names_what_is_supported(pocket):
    with pytest.raises(openai.BadRequestError) as error:
        ask(pocket, user("hello"), logit_bias={"5": 1})
    supported = error.value.body["message"].partition("Supported: ")[2].rstrip(".").split(", ")
    assert {"messages", "top_k", "logprobs", "response_format", "pruning"} <= set(supported)
    assert not {"logit_bias", "audio", "user", "tools"} & set(supported)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "user"},
        {"role": "user", "content": []},
        {"role": "system", "content": None},
        {"role": "assistant", "content": "a", "tool_calls": [{"id": "a"}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": None}]},
    ],
)
def test_messages_that_are_refused(pocket, message):
    with pytest.raises(openai.BadRequestError):
        ask(pocket, [message, *user("hello")])


# -- parameters that generate() carries out ---------------------------------------------------------------------------


def test_top_k_min_p_and_repetition_penalty_are_carried_out(checkpoint):
    with live(tiny(checkpoint)) as server:
        client = server.client()

        def text(**options: object) -> str:
            answer = client.chat.completions.create(
                model="tiny", messages=user("what is this"), max_tokens=16, extra_body=options
            )
            return answer.choices[0].message.content

        greedy = text()
        hot = {"temperature": 2, "seed": 5}
        assert text(**hot) != greedy
        assert text(**hot, top_k=1) == greedy
        assert text(**hot, min_p=1) == greedy
        assert text(**hot, top_k=0) == text(**hot, top_k=-1) == text(**hot)
        words, before = text(repetition_penalty=10).split(), greedy.split()
        assert len(set(words)) == len(words) > 12
        assert len(set(before)) < len(before)


# -- an assistant's message at the end is continued -------------------------------------------------------------------


def test_an_assistants_message_is_continued(checkpoint):
    """The answer to a beginning is the rest of the answer."""
    with live(tiny(checkpoint)) as server:
        client = server.client()

        def answer(messages: list, **options: object):
            return client.chat.completions.create(model="tiny", messages=messages, **options)

        question = user("what is this", data_url(open_image("example:cloth")))
        whole = answer(question, max_tokens=12).choices[0].message.content.split()
        begun = [*question, {"role": "assistant", "content": " ".join(whole[:5])}]
        rest = answer(begun, max_tokens=7)
        assert rest.choices[0].message.content.split() == whole[5:]
        for extra in (
            {"continue_final_message": True},
            {"continue_final_message": True, "add_generation_prompt": False},
        ):
            again = answer(begun, max_tokens=7, extra_body=extra)
            assert again.choices[0].message.content == rest.choices[0].message.content
        for nothing in (None, "", []):
            empty = answer([*question, {"role": "assistant", "content": nothing}], max_tokens=12)
            assert empty.choices[0].message.content.split() == whole
        with pytest.raises(openai.BadRequestError, match="does not fit the last message"):
            answer(begun, max_tokens=7, extra_body={"continue_final_message": False})


def test_the_pocket_models_template_continues(pocket, cloth):
    prompt = [*user(QUESTION, cloth), {"role": "assistant", "content": "orange"}]
    answer = ask(pocket, prompt)
    assert answer.choices[0].message.content == ""  # there is nothing to add
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == ask(pocket, user(QUESTION, cloth)).usage.prompt_tokens + 1
