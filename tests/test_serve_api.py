"""The server as its clients meet it: the official client, plain HTTP, several models, keys, shutdown."""

from __future__ import annotations

import base64
import io
import json
import logging
import re

import httpx
import openai
import pytest
from PIL import Image

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.images import open_image
from adaptprune.serve.app import Settings
from adaptprune.serve.guard import GuardLimits, Keys
from tests.serving import data_url, live, picture, pocket_engine, tiny, user

QUESTION = "What colour is the triangle?"


@pytest.fixture(scope="module")
def pocket():
    """A server with the pocket model."""
    with live(pocket_engine()) as server:
        yield server


@pytest.fixture(scope="module")
def cloth() -> str:
    return data_url(open_image("example:cloth"))


def test_an_answer_and_what_it_cost(pocket, cloth):
    answer = pocket.client().chat.completions.create(
        model="pocket",
        messages=user(QUESTION, cloth),
        extra_body={"pruning": {"method": "adaptprune", "keep_ratio": 0.1}},
    )
    assert answer.choices[0].message.content == "orange"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > 576
    pruning, timing = answer.usage.pruning, answer.usage.timing
    assert (pruning["visual_tokens"], pruning["visual_tokens_kept"]) == (576, 57)
    assert pruning["method"].startswith("adaptprune:keep_ratio=0.1,")
    assert pruning["images"] == [{"visual_tokens": 576, "visual_tokens_kept": 57, "grids": [[24, 24]]}]
    assert pruning["kv_bytes"] < 0.5 * pruning["kv_bytes_unpruned"]
    assert 0 < pruning["selection_ms"] < timing["prefill_ms"] < timing["first_token_ms"] <= timing["total_ms"]


def test_pruning_per_request(pocket, cloth):
    def kept(pruning: dict | None) -> tuple:
        extra = {} if pruning is None else {"pruning": pruning}
        usage = (
            pocket.client()
            .chat.completions.create(model="pocket", messages=user(QUESTION, cloth), extra_body=extra, max_tokens=1)
            .usage
        )
        return usage.pruning["visual_tokens_kept"], (usage.pruning["method"] or "none").partition(":")[0]

    assert kept(None) == (144, "adaptprune")
    assert kept({"keep_ratio": 0.5}) == (288, "adaptprune")
    assert kept({"method": "fastv:keep_ratio=0.5", "layer": 3}) == (288, "fastv")
    assert kept({"method": "none"}) == (576, "none")


def test_kept_tokens_and_overlay_on_request(pocket, cloth):
    pruning = {"keep_ratio": 0.1, "return_kept": True, "return_overlay": True}
    answer = pocket.client().chat.completions.create(
        model="pocket", messages=user(QUESTION, cloth), extra_body={"pruning": pruning}
    )
    (image,) = answer.usage.pruning["images"]
    assert len(image["kept"]) == len({tuple(place) for place in image["kept"]}) == 57
    assert all(grid == 0 and 0 <= row < 24 and 0 <= column < 24 for grid, row, column in image["kept"])
    kind, _, body = answer.usage.pruning["overlay"].partition(",")
    assert kind == "data:image/png;base64"
    drawn = Image.open(io.BytesIO(base64.b64decode(body)))
    assert drawn.size == (24 * 28, 24 * 28)


def test_streaming(pocket, cloth):
    chunks = list(
        pocket.client().chat.completions.create(
            model="pocket",
            messages=user(QUESTION, cloth),
            stream=True,
            stream_options={"include_usage": True},
            n=2,
        )
    )
    texts, finishes = ["", ""], {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            finishes[choice.index] = choice.finish_reason
    assert texts == ["orange", "orange"]
    assert finishes == {0: "stop", 1: "stop"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.pruning["visual_tokens_kept"] == 144
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_conversation_with_several_images_and_the_clients_own_messages(pocket, cloth):
    client = pocket.client()
    messages = user(QUESTION, cloth)
    first = client.chat.completions.create(model="pocket", messages=messages)
    messages.append(first.choices[0].message.model_dump())  # with all its nulls
    messages += user("What shape is the pink object?", data_url(open_image("example:slate"), "JPEG"))
    second = client.chat.completions.create(
        model="pocket", messages=[{"role": "system", "content": "Look."}, *messages]
    )
    assert second.choices[0].message.content
    assert second.usage.pruning["visual_tokens"] == 2 * 576
    text = client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": "hello"}])
    assert text.usage.pruning is None


def test_sampling_stop_and_length(checkpoint):
    with live(tiny(checkpoint)) as server:
        client = server.client()

        def text(**options) -> str:
            answer = client.chat.completions.create(
                **{"model": "tiny", "messages": user("what is this"), "max_tokens": 12, **options}
            )
            return answer.choices[0].message.content

        greedy = text()
        assert text(temperature=0) == greedy  # what generation_config.json says
        assert text(temperature=1.5, seed=1) == text(temperature=1.5, seed=1) != text(temperature=1.5, seed=2)
        stop = greedy.split()[3]
        assert text(stop=stop) == greedy[: greedy.index(stop)]
        assert text(stop=["zzz", stop]) == greedy[: greedy.index(stop)]
        assert len(text(max_completion_tokens=5, max_tokens=9).split()) == 5
        answer = client.chat.completions.create(model="tiny", messages=user("a"), n=3, max_tokens=4, temperature=1.0)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        assert answer.usage.completion_tokens == 12


def parts(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


REFUSED = {
    "tools is not supported": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "top_logprobs is allowed only together with logprobs": {"top_logprobs": 2},
    "audio is not supported": {"audio": {"voice": "a", "format": "wav"}},
    "response_format.json_schema.schema is missing": {"response_format": {"type": "json_schema"}},
    "frequency_penalty is not supported": {"frequency_penalty": 0.5},
    "logit_bias is not supported": {"logit_bias": {"5": 1}},
    "keep_ratio=7 is not allowed": {"extra_body": {"pruning": {"keep_ratio": 7}}},
    "unknown method 'fastvee'. Did you mean 'fastv'?": {"extra_body": {"pruning": {"method": "fastvee"}}},
    "unknown option 'keep_ration' for 'adaptprune'. Did you mean": {"extra_body": {"pruning": {"keep_ration": 0.1}}},
    "layer=77 is outside the model, which has 6": {"extra_body": {"pruning": {"layer": 77}}},
    "option 'backend' is the server's": {"extra_body": {"pruning": {"method": "adaptprune:backend=reference"}}},
    'method "none" has no options': {"extra_body": {"pruning": {"method": "none", "keep_ratio": 0.5}}},
    "unknown parameter 'temprature'. Did you mean 'temperature'?": {"extra_body": {"temprature": 1}},
    "temperature: input should be less than or equal to 2, not 3": {"temperature": 3},
    "n: input should be greater than or equal to 1": {"n": 0},
    "n=33 is not allowed": {"n": 33},
    "max_tokens=99999 is not allowed": {"max_tokens": 99999},
    "more than the model's context of 2048": {"max_tokens": 2000},
    "stream_options is allowed only together with stream": {"stream_options": {"include_usage": True}},
    "messages[0].content[0]: only parts of type": {"messages": parts({"type": "input_audio"})},
    "messages[0].content[0].text: input should be": {"messages": parts({"type": "text", "text": 5})},
    "messages[0].role": {"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]},
    "only users show images": {"messages": [{**user("a", "data:,")[0], "role": "assistant"}, *user("a")]},
    "the last message has to be the user's": {"messages": [{"role": "system", "content": "a"}]},
    "the image placeholder '<image>'": {"messages": user("a <image> b")},
}  # fmt: skip


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_is_not_carried_out_is_refused_by_name(pocket, cloth, message):
    with pytest.raises(openai.BadRequestError) as error:
        pocket.client().chat.completions.create(
            **{"model": "pocket", "messages": user(QUESTION, cloth), **REFUSED[message]}
        )
    body = error.value.body
    assert message in body["message"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert body["code"]


def test_values_that_mean_not_used_are_accepted(pocket):
    answer = pocket.client().chat.completions.create(
        model="pocket", messages=user("hello"), tools=[], logprobs=False, presence_penalty=0, frequency_penalty=0.0,
        response_format={"type": "text"}, user="me", metadata={"a": "b"}, max_tokens=None, tool_choice="none",
        store=False, logit_bias={}, modalities=["text"], extra_body={"top_logprobs": None},
    )  # fmt: skip
    assert answer.choices


def test_several_models_in_one_process(pocket, checkpoint):
    with live(tiny(checkpoint, "org/a"), tiny(checkpoint, "b")) as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["org/a", "b"]
        assert client.models.retrieve("org/a").max_model_len == 512
        assert not hasattr(client.models.retrieve("org/a"), "notice")  # only the pocket model has one
        for name in ("org/a", "b"):
            assert client.chat.completions.create(model=name, messages=user("a"), max_tokens=2).model == name
        with pytest.raises(openai.NotFoundError, match="unknown model 'org/b'. Did you mean 'org/a'"):
            client.chat.completions.create(model="org/b", messages=user("a"))
        with pytest.raises(openai.NotFoundError, match="unknown model"):
            client.models.retrieve("nothing")


def test_keys(checkpoint, caplog):
    secret = "sk-very-secret-1"
    with (
        caplog.at_level(logging.DEBUG),
        live(tiny(checkpoint), settings=Settings(Keys(["another-key", secret]))) as server,
    ):
        assert server.client(api_key=secret).models.list().data
        assert (
            server.client(api_key="another-key")
            .chat.completions.create(model="tiny", messages=user("a"), max_tokens=1)
            .choices
        )
        for wrong in ("sk-very-secret-", "x", secret.upper()):
            with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
                server.client(api_key=wrong).models.list()
        for header in (
            {},
            {"Authorization": secret},
            {"Authorization": f"Basic {secret}"},
            {"Authorization": "Bearer é".encode()},
        ):
            assert httpx.get(f"{server.url}/v1/models", headers=header).status_code == 401
        for path in ("health", "ready", "metrics", "docs", "openapi.json"):
            assert httpx.get(f"{server.url}/{path}").status_code == 200
        keys = Keys([secret])
    assert secret not in caplog.text
    assert secret not in repr(vars(keys))


def test_a_server_without_a_key_answers_to_its_own_name_only(checkpoint):
    """A web page that points a name of its own at this machine does not get through."""
    with live(tiny(checkpoint), settings=Settings(hosts=("127.0.0.1", "localhost", "[::1]"))) as server:
        port = server.url.rpartition(":")[2]
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": f"LOCALHOST:{port}"}).status_code == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            answer = httpx.get(f"{server.url}/v1/models", headers={"Host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_health_metrics_and_docs(pocket, cloth):
    pocket.client().chat.completions.create(model="pocket", messages=user(QUESTION, cloth))
    pocket.settle()
    assert httpx.get(f"{pocket.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{pocket.url}/ready").json() == {"status": "ready"}
    text = httpx.get(f"{pocket.url}/metrics").text
    found = dict(re.findall(r'^(adaptprune_\w+)\{model="pocket"(?:,outcome="ok")?\} (\S+)$', text, re.MULTILINE))
    assert float(found["adaptprune_requests_total"]) >= 1
    assert float(found["adaptprune_visual_tokens_total"]) > float(found["adaptprune_visual_tokens_kept_total"]) > 0
    assert float(found["adaptprune_first_token_seconds_count"]) == float(found["adaptprune_requests_total"])
    assert float(found["adaptprune_running_rows"]) == 0
    assert "swagger" in httpx.get(f"{pocket.url}/docs").text
    schema = httpx.get(f"{pocket.url}/openapi.json").json()
    assert "pruning" in schema["components"]["schemas"]["ChatRequest"]["properties"]


def test_other_paths_and_bodies(pocket):
    def code(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["code"]

    chat = f"{pocket.url}/v1/chat/completions"
    assert code(httpx.get(f"{pocket.url}/v1/nothing")) == (404, "not_found")
    assert code(httpx.get(chat)) == (405, "method_not_allowed")
    assert code(httpx.post(chat, content=b"{}", headers={"content-type": "text/plain"})) == (
        415,
        "unsupported_media_type",
    )
    bodies = {
        b"{": "invalid_json",
        b"": "invalid_json",
        b"nul": "invalid_json",
        b"\xff": "invalid_json",
        b'{"a": ' + b"[" * 9999: "invalid_json",
        b"[]": "invalid_type",
        b"{}": "missing_required_parameter",
    }
    for body, expected in bodies.items():
        answer = httpx.post(chat, content=body, headers={"content-type": "application/json"})
        assert code(answer) == (400, expected), body


def test_defects_show_no_traceback(checkpoint, monkeypatch):
    engine = tiny(checkpoint)
    with live(engine) as server:
        client = server.client()

        def broken(*args: object) -> None:
            raise RuntimeError("secret detail at /some/path")

        monkeypatch.setattr(engine._batch, "step", broken)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=5)
        assert error.value.body["code"] == "internal_error"
        assert "secret" not in json.dumps(error.value.body)
        monkeypatch.undo()
        monkeypatch.setattr(engine.prompter, "inputs", broken)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=5)
        assert "secret" not in error.value.response.text
        monkeypatch.undo()
        assert client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=5).choices


def test_a_body_above_the_limit(checkpoint):
    with live(tiny(checkpoint), settings=Settings(guard=GuardLimits(max_body=10_000, max_bodies=15_000))) as server:
        big = {"model": "tiny", "messages": user("a" * 20_000)}
        with pytest.raises(openai.APIStatusError) as error:
            server.client().chat.completions.create(**big)
        assert (error.value.status_code, error.value.body["code"]) == (413, "request_too_large")

        def chunks():
            for _ in range(20):
                yield b"a" * 1000

        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=chunks(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413


def test_asking_for_a_picture_changes_no_pruning(checkpoint):
    """A server without pruning stays without, whatever is asked about it; a ratio alone asks for the default rule."""
    engine = Engine("tiny", *adaptprune.load(checkpoint))
    with live(engine) as server:

        def kept(**pruning):
            answer = server.client().chat.completions.create(
                model="tiny",
                messages=user("what ?", data_url(picture(1))),
                max_tokens=2,
                extra_body={"pruning": pruning},
            )
            found = answer.usage.model_extra["pruning"]
            return found["method"], found["visual_tokens_kept"] < found["visual_tokens"]

        assert kept(return_overlay=True, return_kept=True) == (None, False)
        assert kept(method=None, return_overlay=True) == (None, False)
        method, fewer = kept(keep_ratio=0.25)
        assert method.startswith("adaptprune:keep_ratio=0.25")
        assert fewer
