"""A client whose answers are written down beforehand, and a desk over it; a browser to look at the page with."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import adaptprune
from adaptprune.client import Cost, ServedModel
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
