"""Bodies that are large or odd for their own sake: refused at once, in a few words, and nobody else waits for it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.serve.errors import ServeError, error_object
from adaptprune.serve.parsing import check_size, parse
from tests.serving import live, user

MANY = {f"k{place}": 0 for place in range(300_000)}
SOME = {f"k{place}": 0 for place in range(10_000)}
LONG = "k" * 8_000_000


def request(**changes: object) -> dict:
    return {"model": "tiny", "messages": user("a"), **changes}


def message(**changes: object) -> dict:
    return request(messages=[{"role": "user", "content": "a", **changes}])


def part(**changes: object) -> dict:
    return message(content=[{"type": "image_url", "image_url": {"url": "data:,"}, **changes}])


#: Every place that takes an object.
PLACES = {
    "top": lambda extra: request(**extra),
    "messages": lambda extra: message(**extra),
    "content": lambda extra: part(**extra),
    "image_url": lambda extra: part(image_url={"url": "data:,", **extra}),
    "cache_control": lambda extra: part(cache_control=extra),
    "tool_calls": lambda extra: message(tool_calls=[extra]),
    "pruning": lambda extra: request(pruning=extra),
    "metadata": lambda extra: request(metadata=extra),
    "stream_options": lambda extra: request(stream=True, stream_options=extra),
    "response_format": lambda extra: request(response_format=extra),
    "json_schema": lambda extra: request(response_format={"type": "json_schema", "json_schema": extra}),
    "schema": lambda extra: request(response_format={"type": "json_schema", "json_schema": {"schema": extra}}),
    "logit_bias": lambda extra: request(logit_bias=extra),
    "tools": lambda extra: request(tools=[extra]),
    "chat_template_kwargs": lambda extra: request(chat_template_kwargs=extra),
    "reasoning": lambda extra: message(reasoning=extra),
}
#: Places of a value.
VALUES = {
    "model": lambda value: request(model=value),
    "role": lambda value: message(role=value),
    "type": lambda value: part(type=value),
    "detail": lambda value: part(image_url={"url": "data:,", "detail": value}),
    "messages": lambda value: request(messages=value),
    "temperature": lambda value: request(temperature=value),
    "seed": lambda value: request(seed=value),
    "stop": lambda value: request(stop=value),
    "method": lambda value: request(pruning={"method": value}),
    "option": lambda value: request(pruning={"keep_ratio": value}),
    "modalities": lambda value: request(modalities=value),
    "tool_choice": lambda value: request(tool_choice=value),
}
RAW = {
    "commas": b"," * 5_000_000,
    "quotation marks": b'"' * 5_000_000,
    "spaces": b"{" + b" " * 5_000_000,
    "zeros": bytes(5_000_000),
    "digits": b'{"seed": ' + b"9" * 5_000_000 + b"}",
    "fraction": b'{"temperature": 0.' + b"1" * 5_000_000 + b"}",
    "exponent": b'{"temperature": 1e' + b"9" * 4_000_000 + b"}",
    "large integers": b'{"seed": [' + b",".join([b"9" * 4200] * 900) + b"]}",
    "brackets": b"[" * 90_000,
    "nested": b'{"a":' * 30_000,
    "escapes": b'{"a": "' + b'\\"' * 3_000_000 + b'"}',
    "backslashes": b'{"a": "' + b"\\" * 8_000_000 + b'"}',
    "runs of backslashes": b'{"a": "' + (b"\\" * 99 + b'"') * 80_000 + b'"}',
    "one key again and again": b"{" + b'"model":"a",' * 20_000 + b'"x": 1}',
    "no UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "half a pair": b'{"model": "\\ud800"}',
    "never closed": b'{"model": "' + b"a" * 5_000_000,
}
BODIES = {
    **{f"300,000 keys in {name}": json.dumps(make(MANY)).encode() for name, make in PLACES.items()},
    **{f"10,000 keys in {name}": json.dumps(make(SOME)).encode() for name, make in PLACES.items()},
    **{f"a long key in {name}": json.dumps(make({LONG: 1})).encode() for name, make in PLACES.items()},
    **{f"a long {name}": json.dumps(make(LONG)).encode() for name, make in VALUES.items()},
    **{f"a list as {name}": json.dumps(make([1] * 90_000)).encode() for name, make in VALUES.items()},
    **{f"lists as {name}": json.dumps(make([[]] * 40_000)).encode() for name, make in VALUES.items()},
    **RAW,
}


class Held:
    """The longest time for which another thread could not run."""

    def __enter__(self) -> Held:
        self.worst, self._going = 0.0, True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        last = time.perf_counter()
        while self._going:
            time.sleep(0.001)
            now = time.perf_counter()
            self.worst, last = max(self.worst, now - last), now

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()


def refusal(body: bytes) -> ServeError | None:
    """Why a body is not taken; None if it is."""
    try:
        parse(body)
    except ServeError as error:
        return error
    return None


@pytest.mark.parametrize("name", list(BODIES))
def test_every_body_is_read_or_refused_in_moments(name):
    """Three tries, of which the best counts: other processes share this machine's cores."""
    worst = []
    for _ in range(3):
        start = time.thread_time()
        with Held() as held:
            error = refusal(BODIES[name])
        assert time.thread_time() - start < 2
        assert error is None or error.status == 400
        assert error is None or len(json.dumps(error_object(error))) < 4000
        worst.append(held.worst)
        if held.worst < 0.1:
            return
    raise AssertionError(f"other threads waited for {min(worst):.2f} s")


def test_what_is_refused_is_named():
    def problem(body: object) -> str:
        with pytest.raises(ServeError) as error:
            parse(body if isinstance(body, bytes) else json.dumps(body).encode())
        return error.value.message

    assert "more than 100,000 keys and values" in problem(PLACES["top"](MANY))
    first = problem(PLACES["top"](SOME))
    assert first.startswith("unknown parameter 'k0'. Allowed: add_generation_prompt, ")
    assert "frequency_penalty" not in first  # only what is carried out
    assert "'k1'" not in first
    assert problem(message(contnt="a")) == (
        "unknown parameter 'messages[0].contnt'. Did you mean 'content'? Allowed: content, role."
    )
    long = problem(request(**{LONG: 1}))
    assert long.startswith(f"unknown parameter '{'k' * 77}...': no key has more than")
    long = problem(request(**{LONG[:9000]: 1}))
    assert long.startswith(f"unknown parameter '{'k' * 77}...'. Allowed")
    assert problem(request(temperature=LONG)).endswith(f", not '{'k' * 76}....")
    assert "unknown parameter 'pruning.kkk" in problem(request(pruning={LONG[:9000]: 1}))
    assert "more than 2,000,000 backslashes" in problem(RAW["backslashes"])
    assert problem(request(messages=[])) == "messages: list should have at least 1 item after validation, not 0."


def test_what_people_send_is_within_the_bounds():
    parts = [{"type": "text", "text": 'a "quoted" word, {"and": ["json"]} \\'}] * 9
    assert (
        len(parse(json.dumps(request(messages=[{"role": "user", "content": parts}] * 1000)).encode()).messages) == 1000
    )
    image = "data:image/png;base64," + "A" * 28_000_000
    assert parse(json.dumps(part(image_url={"url": image})).encode())
    slashes = part(image_url={"url": image[:9_000_000].replace("AAAAAAAA", "AAAAAAA/")})
    assert parse(json.dumps(slashes).replace("/", "\\/").encode())  # as PHP writes it
    source = json.dumps({"a": ['"'] * 30_000})  # JSON as text
    assert parse(json.dumps(message(content=source)).encode()).messages[0].content == source


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\,[]{}:é'),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text('ab"\\,[]{}:'), inner, max_size=5),
    max_leaves=30,
)


@given(json_values, st.booleans())
def test_members_are_counted_outside_of_strings(value, ascii_only):
    """The count is the same for any text inside the strings, so it is made where the strings end."""

    def blank(value: object) -> object:
        if isinstance(value, str):
            return ""
        if isinstance(value, list):
            return [blank(one) for one in value]
        if isinstance(value, dict):
            return Pairs([(blank(key), blank(one)) for key, one in value.items()])
        return value

    class Pairs(dict):
        """An object whose keys may be equal."""

        def __init__(self, pairs: list) -> None:
            super().__init__({"": 0} if pairs else {})
            self.pairs = pairs

        def items(self):
            return self.pairs

    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert _members(body) == _members(json.dumps(blank(value)).encode())


def _members(body: bytes) -> int:
    """The smallest bound within which a body is."""
    from adaptprune.serve import parsing

    low, high = 0, 10_000
    while low < high:
        middle = (low + high) // 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parsing, "MAX_MEMBERS", middle)
            try:
                check_size(body)
                high = middle
            except ServeError:
                low = middle + 1
    return low


WATCH = """
import sys, threading, time, httpx
client, worst = httpx.Client(timeout=60), 0.0
client.get(sys.argv[1])
print("ready", flush=True)
leave = threading.Thread(target=sys.stdin.read)
leave.start()
while leave.is_alive():
    start = time.perf_counter()
    assert client.get(sys.argv[1]).status_code == 200
    worst = max(worst, time.perf_counter() - start)
    time.sleep(0.005)
print(worst)
"""


@pytest.fixture(scope="module")
def server(checkpoint):
    with live(Engine("tiny", *adaptprune.load(checkpoint))) as server:
        assert server.client().chat.completions.create(model="tiny", messages=user("a"), max_tokens=2).choices
        yield server


def _send(server, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "name", ["300,000 keys in top", "300,000 keys in metadata", "a long key in top", "a long type", "escapes", "nested"]
)
def test_health_is_answered_meanwhile_and_memory_goes_back(server, name):
    body = BODIES[name]
    _send(server, body)  # what is loaded at first use
    worst = []
    for _ in range(3):
        watch = subprocess.Popen(
            [sys.executable, "-c", WATCH, f"{server.url}/health"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watch.stdout.readline() == "ready\n"
        before = _memory()
        for _ in range(3):
            answer = _send(server, body)
            assert answer.status_code == 400
            assert len(answer.content) < 4000
        worst.append(float(watch.communicate()[0]))
        until = time.monotonic() + 5
        while _memory() > before + 50e6:
            assert time.monotonic() < until, f"{(_memory() - before) / 1e6:.0f} MB are still held"
            time.sleep(0.05)
        if worst[-1] < 0.1:
            return
    raise AssertionError(f"/health took {min(worst):.2f} s")


def _memory() -> int:
    return psutil.Process().memory_info().rss


def test_an_idle_server_keeps_no_memory_of_its_answers(checkpoint, monkeypatch):
    """Rows and their cache are dropped as they leave; a moment later the allocator's reserve goes back, once."""
    from adaptprune.engines.batch import engine as module

    given_back = []
    monkeypatch.setattr(module, "IDLE", 0.2)
    monkeypatch.setattr(module, "give_back", given_back.append)
    with live(Engine("tiny", *adaptprune.load(checkpoint))) as server:
        for _ in range(3):  # one after another: no moment of idleness between them is long enough
            server.client().chat.completions.create(model="tiny", messages=user("a"), max_tokens=2)
        server.settle()
        time.sleep(0.6)
        assert [device.type for device in given_back] == ["cpu"]
        assert server.engines["tiny"].cache_bytes == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_that_was_freed_in_pieces_goes_back():
    from adaptprune.engines.batch.memory import give_back

    before = _memory()
    held = [bytes(10_000) for _ in range(20_000)]
    last = bytearray(10_000)  # lies behind them, so that the allocator keeps what is in front
    assert _memory() > before + 150e6
    del held
    give_back()
    assert _memory() < before + 50e6
    del last
