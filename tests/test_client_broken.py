"""Servers that answer with what is no answer: one line that says so, whatever it is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adaptprune.engines.client import Client, ClientError, Cost, Request

GOOD = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
END = b"data: [DONE]\n\n"
UNREADABLE, CUT = "not what the OpenAI API describes", "ask again"
STREAMS = {
    "no JSON": (b"data: {not json\n\n", UNREADABLE),
    "a list": (b"data: []\n\n", UNREADABLE),
    "a text": (b'data: "hello"\n\n', UNREADABLE),
    "null": (b"data: null\n\n", UNREADABLE),
    "bytes": (b"\xff\xfe\x00data: \xff\n\n", UNREADABLE),
    "choices that are a number": (b'data: {"choices": 5}\n\n', UNREADABLE),
    "a delta that is a number": (b'data: {"choices": [{"delta": 7}]}\n\n', UNREADABLE),
    "content that is an object": (b'data: {"choices": [{"delta": {"content": {"a": 1}}}]}\n\n', UNREADABLE),
    "content that is a number": (b'data: {"choices": [{"delta": {"content": 1}}]}\n\n', UNREADABLE),
    "nothing": (b"", CUT),
    "no end": (GOOD, CUT),
    "no choices": (b'data: {"choices": null}\n\n' + END, CUT),
    "no delta": (b'data: {"choices": [{"delta": null}]}\n\n' + END, CUT),
    "cut": (GOOD + b"data: {", "broke off the answer"),
    "an error": (b'data: {"error": "bad"}\n\n', "the server failed"),
    "an odd error": (b'data: {"error": {"message": ["x"], "code": {"a": 1}}}\n\n', "the server failed"),
}
LISTS = {
    "[]": UNREADABLE, "null": UNREADABLE, "nonsense": UNREADABLE, '{"data": 7}': "serves no model",
    '{"data": [7, null, {"id": 7}, {"id": ""}]}': "serves no model",
}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body, _ = STREAMS[list(STREAMS)[int(self.path.split("/")[1])]]
        cut = body.endswith(b"{")
        self._send("text/event-stream", body, 10**6 if cut else len(body))
        if cut:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def do_GET(self):
        body = list(LISTS)[int(self.path.split("/")[1])].encode()
        self._send("application/json", body, len(body))

    def _send(self, kind, body, length):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("number", range(len(STREAMS)), ids=list(STREAMS))
def test_a_stream_that_is_no_answer(url, number):
    (name, (_, message)) = list(STREAMS.items())[number]
    with pytest.raises(ClientError, match=message) as caught:
        list(Client(f"{url}/{number}").stream(Request("m", [{"role": "user", "content": "?"}])))
    assert "\n" not in str(caught.value)
    assert caught.value.code is None or isinstance(caught.value.code, str), name


@pytest.mark.parametrize("number", range(len(LISTS)), ids=list(LISTS))
def test_a_list_of_models_that_is_none(url, number):
    with pytest.raises(ClientError, match=list(LISTS.values())[number]):
        Client(f"{url}/{number}").models()


def test_usage_of_any_type_costs_no_answer(url, monkeypatch):
    body = b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": ["stop"]}], "usage": "seven"}\n\n' + END
    monkeypatch.setitem(STREAMS, "nothing", (body, ""))
    place = list(STREAMS).index("nothing")
    found = list(Client(f"{url}/{place}").stream(Request("m", [{"role": "user", "content": "?"}])))
    assert found == ["x", Cost()]
