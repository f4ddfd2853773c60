"""Requests that mean harm: every one is refused with a 4xx, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.methods import make_pruner
from adaptprune.serve import server as serving
from adaptprune.serve.app import Settings
from adaptprune.serve.guard import GuardLimits
from adaptprune.serve.pictures import ImageLimits
from tests.serving import data_url, live, picture, user

LIMITS = ImageLimits(max_images=4, max_bytes=200_000, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def server(checkpoint):
    guard = GuardLimits(max_body=1_000_000, body_timeout=1.0, send_timeout=1.0)
    model, processor = adaptprune.load(checkpoint)
    engine = Engine("tiny", model, processor, EngineLimits(max_tokens=64), make_pruner("adaptprune:keep_ratio=0.25"))
    with live(engine, settings=Settings(images=LIMITS, guard=guard)) as server:
        yield server


@pytest.fixture(autouse=True)
def alive_afterwards(request):
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        answer = post(server, user("a"))
        assert answer.status_code == 200, answer.text
        server.settle()


def post(server, messages: list, **more: object) -> httpx.Response:
    body = {"model": "tiny", "messages": messages, "max_tokens": 2, **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def png(width: int, height: int, rows: int = 1) -> bytes:
    """A PNG whose header promises more than its few bytes hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * ((1 + 3 * width) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (3000, 3000)).save(buffer, "GIF")
    return buffer.getvalue()


IMAGES = {
    "bomb: huge size in a small header": (encoded(png(60_000, 60_000)), "more than the 1,000,000"),
    "bomb: 3,000 x 3,000 in a few bytes": (encoded(_gif(), "gif"), "more than the 1,000,000"),
    "very long and thin": (encoded(png(100_000, 1)), "no side may be more than"),
    "no pixels": (encoded(png(0, 10)), "image"),
    "cut off": (data_url(picture(0))[:-4000], "damaged or cut off"),
    "header only": (encoded(png(90, 90)[:33]), "not an image that can be read"),
    "base64 cut off": (data_url(picture(0))[:-3], "base64 of a data URL is damaged"),
    "no base64": ("data:image/png;base64,@@@@", "base64 of a data URL is damaged"),
    "empty": ("data:image/png;base64,", "has no bytes"),
    "no image": (encoded(b"hello" * 20), "not an image that can be read"),
    "svg": (encoded(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg+xml"), "not an image that can be read"),
    "a format that starts other programs": (encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not an image"),
    "too many bytes": (encoded(bytes(250_000)), "more than the 200,000 bytes"),
    "not base64 at all": ("data:image/png,abc", "has to look like"),
    "no comma": ("data:image/png;base64", "has to look like"),
    "a file": ("file:///etc/passwd", "has to be a data URL"),
    "a path": ("/etc/passwd", "has to be a data URL"),
    "our own scheme": ("example:cloth", "has to be a data URL"),
    "ftp": ("ftp://example.com/a.png", "has to be a data URL"),
    "a web address": ("http://example.com/a.png", "--allow-image-hosts"),
    "this machine": ("http://127.0.0.1/", "--allow-image-hosts"),
    "nothing": ("", "has to be a data URL"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(IMAGES))
def test_bad_images(server, name):
    url, message = IMAGES[name]
    answer = post(server, user("a", url))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["code"], error["param"]) == ("bad_image", "messages[0].content[0].image_url")
    assert "Traceback" not in answer.text


def test_too_many_images_and_pixels_in_all(server):
    assert "has 5 images, more than the 4" in post(server, user("a", *[data_url(picture(0))] * 5)).text
    flat = data_url(Image.new("RGB", (700, 700)))
    assert post(server, user("a", flat, flat)).status_code == 200
    assert "pixels, more than" in post(server, user("a", flat, flat, flat)).text


def test_huge_and_odd_json(server):
    assert post(server, user("w1 " * 400_000)).status_code == 413
    assert post(server, user("w1 " * 2_000)).json()["error"]["code"] == "context_length_exceeded"
    assert (
        post(server, [{"role": "user", "content": "a" * 450_000}]).json()["error"]["code"] == "context_length_exceeded"
    )
    assert post(server, user("a") * 1001).status_code == 400
    assert post(server, user("a"), stop=["a"] * 5).status_code == 400
    assert post(server, user("a"), pruning={"keep_ratio": 10**400}).status_code == 400
    assert post(server, user("a"), pruning={"layer": -(10**30)}).status_code == 400
    assert post(server, user("a"), pruning={f"o{i}": i for i in range(5000)}).status_code == 400
    assert post(server, user("a"), seed=2**70).status_code == 400
    assert post(server, user("a"), model="m" * 100_000).status_code == 400
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    assert post(server, user("a"), metadata={"a": deep}).status_code in (200, 400)
    raw = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    for number in (b"NaN", b"1e999", b"-Infinity"):
        raw = b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": ' + number + b"}"
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, number


def _connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_slow_clients(server, monkeypatch):
    """A body that drips, a head that never ends, an answer that nobody reads: the connection is closed."""
    monkeypatch.setattr(serving, "HEAD_TIMEOUT", 0.5)
    with _connect(server) as silent, _connect(server) as head, _connect(server) as body:
        head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n")
        body.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        for _ in range(3):
            time.sleep(0.1)
            body.sendall(b" ")
        assert post(server, user("a")).status_code == 200  # others are served meanwhile
        assert b" 408 " in body.recv(100)
        assert silent.recv(100) == b""
        assert head.recv(100) == b""


def test_an_answer_that_is_not_read_is_given_up(server):
    import asyncio

    from adaptprune.serve.guard import Guard, Keys

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        await asyncio.sleep(30)

    async def receive():
        return {"type": "http.request"}

    scope = {"type": "http", "path": "/", "headers": []}
    start = time.monotonic()
    asyncio.run(Guard(app, Keys(()), None, GuardLimits(send_timeout=0.1))(scope, receive, send))
    assert time.monotonic() - start < 5


def test_all_bodies_together_are_bounded(checkpoint):
    model, processor = adaptprune.load(checkpoint)
    guard = GuardLimits(max_body=100_000, max_bodies=150_000)
    with live(Engine("tiny", model, processor), settings=Settings(guard=guard)) as server:
        with _connect(server) as first:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            first.sendall(head + b"Content-Length: 99000\r\n\r\n" + b" " * 98_000)
            time.sleep(0.3)
            answer = post(server, user("a" * 90_000))
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
            assert "retry-after" in answer.headers
        time.sleep(0.3)
        assert post(server, user("a")).status_code == 200


def test_broken_http(server):
    for data in (b"\x00" * 100, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                 b"A" * 200_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000):  # fmt: skip
        with _connect(server) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(1000)
            except OSError:
                continue
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), data[:20]


# -- generated requests -----------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
PARAMETERS = [
    *("messages", "stop", "seed", "n", "temperature", "top_p", "max_tokens", "pruning", "stream", "stream_options"),
    *("tools", "timeout", "user", "metadata", "logit_bias", "model", "ignore_eos"),
]
options = st.dictionaries(
    st.sampled_from(["method", "keep_ratio", "layer", "return_kept", "keys", "similarity_sigma", "seed", "backend"]),
    st.sampled_from(
        ["adaptprune", "fastv", "random", "grid", "pool", "none", "", "a:b", 0.5, 0, 1, -1, 2, 10**18, True, None]
    ),
    max_size=3,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(PARAMETERS), junk, max_size=3), st.none() | options)
def test_generated_requests(server, changes, pruning):
    body = {"model": "tiny", "messages": user("a", PICTURE), "max_tokens": 2, **changes}
    if pruning is not None:
        body["pruning"] = pruning
    answer = CLIENT.post(f"{server.url}/v1/chat/completions", content=json.dumps(body).encode("utf-8", "replace"),
                         headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


PICTURE = data_url(picture(0))
CLIENT = httpx.Client(timeout=30)


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_schemathesis(server, mode):
    """The schema tells the truth: statuses, content types and bodies are those it promises, and never a 5xx."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra dev)")
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    called = []

    for operation in schema.get_all_operations():
        if mode == "NEGATIVE" and operation.ok().method != "post":
            continue  # nothing to get wrong
        strategy = operation.ok().as_strategy(generation_mode=GenerationMode[mode])

        @settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)
        @given(strategy)
        def check(case):
            called.append(case.operation.label)
            # a request that fits the schema may still show something that is no image, or end with no question
            case.call_and_validate(base_url=server.url, timeout=30, excluded_checks=[positive_data_acceptance])

        check()
    assert "POST /v1/chat/completions" in called
