"""What those who watch a server see: every failed request counted, a hung engine told from a busy one; half-closed
connections."""

from __future__ import annotations

import json
import re
import socket
import time

import httpx
import openai
import pytest

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.serve import app as application
from adaptprune.serve import asks, pictures
from adaptprune.serve.app import Settings
from adaptprune.serve.guard import GuardLimits, Keys
from tests.serving import data_url, live, picture, tiny, user


def outcomes(server) -> dict[tuple[str, str], int]:
    """Requests by model and outcome."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^adaptprune_requests_total\{model="(.*?)",outcome="(.*?)"\} (\S+)$', text, re.MULTILINE)
    return {(model, outcome): int(float(count)) for model, outcome, count in found}


def post(server, body: object = None, path: str = "/v1/chat/completions", **options: object) -> httpx.Response:
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=30, **options)


def chat(**more: object) -> dict:
    return {"model": "tiny", "messages": user("a"), "max_tokens": 2, **more}


#: What is sent, the model that it counts for, and its outcome.
FAILURES = {
    "a parse error": (b"{", "", "invalid_json"),
    "an unknown parameter": (chat(temprature=1), "", "unknown_parameter"),
    "an unknown model": (chat(model="x" * 400), "", "model_not_found"),
    "an unsupported parameter": (chat(logit_bias={"1": 1}), "", "unsupported_parameter"),
    "a picture that is none": (chat(messages=user("a", "data:image/png;base64,AAAA")), "tiny", "bad_image"),
    "base64 that is none": (chat(messages=user("a", "data:image/png;base64,@")), "tiny", "bad_image"),
    "a placeholder": (chat(messages=user("<image>")), "tiny", "invalid_value"),
    "a long prompt": (chat(messages=user("a " * 3000)), "tiny", "context_length_exceeded"),
    "too many tokens": (chat(max_tokens=10**6), "tiny", "invalid_value"),
    "a schema": (
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}), "tiny", "bad_schema",
    ),
    "too much": (b"a" * 300_000, "", "request_too_large"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(checkpoint):
    engine = Engine("tiny", *adaptprune.load(checkpoint))
    with live(engine, settings=Settings(guard=GuardLimits(max_body=200_000, body_timeout=0.5))) as server:
        yield server


@pytest.mark.parametrize("name", list(FAILURES))
def test_every_refusal_is_counted_once(server, name):
    body, model, outcome = FAILURES[name]
    before = outcomes(server)
    assert post(server, body).status_code >= 400
    after = outcomes(server)
    changed = {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}
    assert changed == {(model, outcome): 1}


BROKEN = {
    "decoding a picture": (pictures, "decode"),
    "reading its address": (pictures, "read"),
    "turns": (asks, "turns"),
    "checks": (asks, "check"),
    "writing the answer": (application.Writer, "whole"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_every_defect_is_counted_once(server, name, monkeypatch):
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(*BROKEN[name], broken)
    before = outcomes(server)
    answer = post(server, chat(messages=user("a", data_url(picture(1)))))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    after = outcomes(server)
    assert after[("tiny", "internal_error")] == before.get(("tiny", "internal_error"), 0) + 1


def test_a_defect_in_a_stream_is_counted(server, monkeypatch):
    def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(application.Writer, "delta", broken)
    before = outcomes(server).get(("tiny", "internal_error"), 0)
    with pytest.raises(httpx.RemoteProtocolError):
        post(server, chat(stream=True))
    assert outcomes(server)[("tiny", "internal_error")] == before + 1


def test_a_template_that_refuses_is_counted(checkpoint):
    model, processor = adaptprune.load(checkpoint)
    processor.chat_template = "{{ raise_exception('no such roles') }}"
    with live(Engine("tiny", model, processor)) as server:
        assert post(server, chat()).status_code == 400
        assert outcomes(server) == {("tiny", "invalid_value"): 1}


def test_what_the_door_refuses_is_counted_too(checkpoint):
    settings = Settings(Keys(["a-secret-key"]), guard=GuardLimits(body_timeout=0.3))
    with live(tiny(checkpoint), settings=settings) as server:
        assert post(server, chat()).status_code == 401
        assert post(server, chat(), headers={"authorization": "Bearer a-secret-key"}).status_code == 200
        assert httpx.get(f"{server.url}/nothing/{'x' * 300}").status_code == 404
        assert (
            httpx.get(f"{server.url}/v1/chat/completions", headers={"authorization": "Bearer a-secret-key"}).status_code
            == 405
        )
        with _connect(server) as slow:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a-secret-key\r\n"
            slow.sendall(head + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in slow.recv(1000)
        assert outcomes(server) == {
            ("", "invalid_api_key"): 1,
            ("tiny", "ok"): 1,
            ("", "not_found"): 1,
            ("", "method_not_allowed"): 1,
            ("", "request_timeout"): 1,
        }


# -- health -----------------------------------------------------------------------------------------------------------


def test_health_tells_a_hung_engine_from_a_busy_one(checkpoint, monkeypatch):
    model, processor = adaptprune.load(checkpoint)
    engine = Engine("tiny", model, processor, EngineLimits(hang_after=1.0))
    monkeypatch.setattr(application, "LONG", 0.3)
    with live(engine) as server:
        original = engine._batch.read

        def slow(job):
            time.sleep(1.6)
            return original(job)

        monkeypatch.setattr(engine._batch, "read", slow)
        job = engine.open(asks.Sampling(2), None, lambda event: None)
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        engine.submit(job, [asks.Turn("user", ["a"])])
        seen = []
        while engine.pending:
            answer = httpx.get(f"{server.url}/health")
            doing = answer.json().get("engines", {}).get("tiny", "")
            assert re.fullmatch(r"(reading a prompt for \d+ s)?", doing)
            seen.append((answer.status_code, answer.json()["status"], bool(doing)))
            time.sleep(0.05)
        busy, hung = (200, "ok", True), (503, "hung", True)
        assert busy in seen
        assert hung in seen
        assert seen.index(busy) < seen.index(hung)
        server.settle()
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}  # it came back
        assert httpx.get(f"{server.url}/ready").status_code == 200
        monkeypatch.setattr(engine.watch, "doing", ("writing 3 answers", time.monotonic() - 70))
        answer = httpx.get(f"{server.url}/health")
        assert (answer.status_code, answer.json()["engines"]["tiny"]) == (503, "writing 3 answers for 70 s")
        assert httpx.get(f"{server.url}/ready").status_code == 503


def test_many_short_turns_are_no_long_one(checkpoint, monkeypatch):
    """An engine that has been at work for longer than the bound, step after step, is not hung."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    engine = Engine("tiny", model, processor, EngineLimits(hang_after=2))
    with live(engine) as server:
        original = engine._batch.step
        monkeypatch.setattr(engine._batch, "step", lambda: (time.sleep(0.05), original())[1])
        start = time.monotonic()
        stream = server.client().chat.completions.create(model="tiny", messages=user("a"), max_tokens=60, stream=True)
        for _ in stream:
            assert not engine.hung
        assert time.monotonic() - start > engine.limits.hang_after
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_an_engine_whose_thread_has_ended_is_dead(checkpoint):
    engine = tiny(checkpoint)
    with live(engine) as server:
        engine.stop()
        answer = httpx.get(f"{server.url}/health")
        assert answer.status_code == 503
        assert answer.json() == {"status": "dead", "engines": {"tiny": "its thread has ended"}}
        assert httpx.get(f"{server.url}/ready").status_code == 503


# -- connections that are closed on one side --------------------------------------------------------------------------


def _connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _send(connection: socket.socket, body: dict, version: str = "1.1") -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)


def _all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_closes_its_sending_side_gets_its_answer(checkpoint, stream, version):
    engine = tiny(checkpoint)
    with live(engine) as server:
        original = engine._batch.step
        engine._batch.step = lambda: (time.sleep(0.02), original())[1]
        with _connect(server) as connection:
            messages = user("a", data_url(picture(1, 300, 300)))  # a body that arrives in many pieces
            _send(connection, chat(max_tokens=40, stream=stream, messages=messages), version)
            connection.shutdown(socket.SHUT_WR)
            answer = _all(connection)  # until the server closes its side, too
        if version == "1.0":
            assert b" 100 " not in answer.partition(b"\r\n\r\n")[0]
        while answer.startswith(b"HTTP/1.1 100"):
            answer = answer.partition(b"\r\n\r\n")[2]
        assert answer.startswith(b"HTTP/1.1 200")
        if stream:
            assert answer.count(b"data: ") > 30
            assert b"[DONE]" in answer
        else:
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 40
        assert outcomes(server) == {("tiny", "ok"): 1}


def test_a_short_answer_comes_without_anything_before_it(checkpoint):
    with live(tiny(checkpoint)) as server, _connect(server) as connection:
        _send(connection, chat())
        connection.shutdown(socket.SHUT_WR)
        assert _all(connection).startswith(b"HTTP/1.1 200")


def test_a_half_closed_client_of_another_route_is_answered(checkpoint):
    with live(tiny(checkpoint)) as server, _connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        connection.shutdown(socket.SHUT_WR)
        assert _all(connection).count(b'{"status":"ok"}') == 2


def test_python_skips_what_keeps_its_connection_known(checkpoint):
    """The official client's own parser meets the signs that are sent to a client which has closed its side."""
    import http.client

    engine = tiny(checkpoint)
    with live(engine) as server:
        original = engine._batch.step
        engine._batch.step = lambda: (time.sleep(0.02), original())[1]
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(chat(max_tokens=40)), {"Content-Type": "application/json"}
        )
        connection.sock.shutdown(socket.SHUT_WR)
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize(("stream", "version"), [(False, "1.1"), (True, "1.1"), (True, "1.0")])
def test_a_client_that_is_gone_is_still_noticed(checkpoint, stream, version):
    """Not one of HTTP/1.0 that waits for a whole answer: it knows no provisional ones."""
    engine = tiny(checkpoint)
    with live(engine) as server:
        original = engine._batch.step
        engine._batch.step = lambda: (time.sleep(0.02), original())[1]
        connection = _connect(server)
        _send(connection, chat(max_tokens=450, stream=stream), version)
        while not engine.running:
            time.sleep(0.005)
        connection.close()
        server.settle(5)  # 450 steps take 9 seconds
        assert engine.counters.steps < 300
        assert outcomes(server) == {("tiny", "client_left"): 1}


def test_a_body_that_was_cut_off_is_no_request(checkpoint):
    with live(tiny(checkpoint)) as server, _connect(server) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_WR)
        assert _all(connection) == b""
        with pytest.raises(openai.BadRequestError):
            server.client().chat.completions.create(model="tiny", messages=user("a"), max_tokens=0)
