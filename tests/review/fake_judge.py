"""An OpenAI-compatible server on loopback whose every reply a test decides. It stops at the end of its `with`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from adaptprune.review import Judge

KEY = "sk-very-secret-0123456789"

#: Told the number of the request (from 0) and its body; says what happens.
Behaviour = Callable[[int, dict[str, Any]], "Answer"]


class Answer:
    """What the server does with one request.

    `text` is a completion; `status`, `headers` and `body` replace it; `cut` sends only so many bytes of what was
    announced; `silent` waits before the first byte; `drip` sends a space every so many seconds, without end.
    """

    def __init__(
        self,
        text: str | None = None,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        cut: int | None = None,
        silent: float = 0.0,
        drip: float = 0.0,
    ) -> None:
        self.text, self.status, self.headers, self.body = text, status, headers or {}, body
        self.cut, self.silent, self.drip = cut, silent, drip


def completion(text: str | None, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, **more}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "judge-2026-01-01",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    ).encode()


class FakeJudge:
    """The server. `seen` holds (path, headers, body) of every request; `most` the largest number under way at once."""

    def __init__(self, behaviour: Behaviour | str) -> None:
        self.behaviour: Behaviour = (lambda n, body: Answer(behaviour)) if isinstance(behaviour, str) else behaviour
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.most = self._now = 0
        self._lock, self._over = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeJudge:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake._handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]  # clients that hang up
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.seen)
            self.seen.append((handler.path, {name.lower(): value for name, value in handler.headers.items()}, body))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self._send(handler, self.behaviour(number, body))
        except OSError:
            handler.close_connection = True  # the client has gone
        finally:
            with self._lock:
                self._now -= 1

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        self._over.wait(answer.silent)
        data = completion(answer.text) if answer.body is None else answer.body
        handler.send_response(answer.status)
        handler.send_header("Content-Type", "application/json")
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        length = 10**6 if answer.drip else len(data)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        while answer.drip and not self._over.is_set():
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(answer.drip)
        handler.wfile.write(data[: answer.cut])
        handler.close_connection = handler.close_connection or answer.cut is not None


def judge(fake, **options):
    return Judge("judge", fake.url, **{"timeout": 20.0, "retries": 2, "concurrency": 3, **options})


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def the_rest(record):
    """A record without what two runs cannot share."""
    return {name: value for name, value in record.items() if name != "date"} | {"judge": record["judge"]["model"]}
