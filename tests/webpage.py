"""A client whose answers are written down beforehand, and a desk over it; a browser to look at the page with."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import adaptprune
from adaptprune.engines.client import Cost, ServedModel
from adaptprune.web.log import FILE, ConversationLog
from adaptprune.web.talk import Desk

EXAMPLES = Path(adaptprune.__file__).parent / "assets" / "examples"
CLOTH = str(EXAMPLES / "cloth.png")


class Scripted:
    """A client whose answers are written down beforehand: pieces, then what happens."""

    def __init__(self, *answers):
        self.answers, self.requests, self.closed = list(answers), [], 0
        self.served = [ServedModel("a", ("adaptprune", "fastv"), "none"), ServedModel("b")]

    def models(self):
        if isinstance(self.served, Exception):
            raise self.served
        return self.served

    def stream(self, request):
        self.requests.append(request)
        try:
            for piece in self.answers.pop(0):
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, threading.Event):
                    piece.wait(10)
                else:
                    yield piece
        finally:
            self.closed += 1


def desk(*answers, log=None) -> Desk:
    one = Desk(Scripted(*answers), log or ConversationLog(None))
    one.refresh()
    return one


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def finish(steps) -> None:
    for _ in steps:
        pass


COST = Cost(10, 3, "adaptprune", 576, 57, 12.0, 20.0, "stop")


# -- servers ----------------------------------------------------------------------------------------------------------


@dataclass
class Says:
    """What an upstream server answers: pieces with pauses between them, then usage; or a refusal."""

    text: str = ""
    piece: int = 10_000
    pause: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    body: Any = None


class Upstream(ThreadingHTTPServer):
    """An OpenAI-compatible server that says what it is told to, by question.

    Attributes
    ----------
    seen : list of str
        Paths that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: list[dict[str, Any]] = [{"id": "upstream"}]
        self.says: dict[str, Says] = {}
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Upstream

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        self._json(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        self.server.seen.append(self.path)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        says = self.server.says[asked if isinstance(asked, str) else asked[-1]["text"]]
        if says.status != 200:
            self._json(says.status, says.body)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for start in range(0, len(says.text), says.piece):
                self._event([{"index": 0, "delta": {"content": says.text[start : start + says.piece]}}])
                time.sleep(says.pause)
            self._event([{"index": 0, "delta": {}, "finish_reason": "stop"}], says.usage or None)
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            pass  # the client gave the request up

    def _event(self, choices: list[dict[str, Any]], usage: Any = None) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "upstream", "choices": choices}
        self.wfile.write(f"data: {json.dumps({**chunk, 'usage': usage})}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def running(server: Upstream) -> Iterator[Upstream]:
    """Serve in the background."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# -- a browser --------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
TIMEOUT = 60_000  # milliseconds; machines of continuous integration are slow


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        # a container's root may not make the sandbox; the page is our own. The webcam is Chromium's test picture.
        arguments = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream",
                     "--use-fake-ui-for-media-stream"]  # fmt: skip
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield one
        one.close()


class Visits:
    """Opens a page and notes what must not be: requests to other hosts, scripts that fail, a policy that is broken."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._opened: list[Any] = []
        self.problems: list[str] = []

    def open(self, **options: Any) -> Page:
        """The page in a new window, with its models listed."""
        context = self._browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self._opened.append(context)
        tab = context.new_page()
        tab.set_default_timeout(TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        tab.on("pageerror", lambda error: self.problems.append(str(error)))
        tab.on("request", lambda request: self._check(request.url))
        tab.on("popup", lambda other: self.problems.append(f"a window of {other.url}"))
        tab.on("dialog", lambda dialog: (self.problems.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("console", lambda said: "Content Security Policy" in said.text and self.problems.append(said.text))
        tab.goto(self._url)
        expect(tab.get_by_role("button", name="Submit").first).to_be_visible()
        return tab

    def close(self) -> list[str]:
        """Close all; what must not have been."""
        for context in self._opened:
            context.close()
        return self.problems

    def _check(self, address: str) -> None:
        if not address.startswith((f"{self._url}/", "data:", "blob:")):
            self.problems.append(f"the page asked for {address[:200]}")


def ask(tab: Page, question: str, box: str = "#question") -> None:
    """Type a question and send it."""
    tab.fill(f"{box} textarea", question)
    tab.press(f"{box} textarea", "Enter")


def add(tab: Page, name: str, box: str = "#question") -> None:
    """Attach an example's picture."""
    tab.set_input_files(f"{box} input[type=file]", str(EXAMPLES / f"{name}.png"))
    expect(tab.locator(f"{box} img")).to_have_count(1)


def answers(tab: Page) -> Any:
    """The answers of the conversation."""
    return tab.locator("#chat .ap-answer")
