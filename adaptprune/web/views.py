"""Conversations as the values of the page's components. No events here."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from adaptprune.web.talk import Conversation, Exchange

WAITING = "…"


def messages(talk: Conversation) -> list[dict[str, Any]]:
    """A conversation for the chat window."""
    shown: list[dict[str, Any]] = []
    for one in talk.exchanges:
        shown += [{"role": "user", "content": {"path": image, "alt_text": Path(image).name}} for image in one.images]
        shown.append({"role": "user", "content": one.question})
        shown.append({"role": "assistant", "content": answer(one)})
    return shown


def answer(exchange: Exchange) -> str:
    """An answer, or what stands in its place."""
    if exchange.state == "waiting":
        return WAITING
    return exchange.answer or ("(no answer: stopped)" if exchange.state == "stopped" else "(empty answer)")


def overlays(talk: Conversation) -> list[tuple[Any, str]]:
    """The pictures of what was kept, one per question, with captions."""
    return [
        (
            one.cost.overlay,
            f"{number}. {one.cost.visual_tokens_kept} of {one.cost.visual_tokens}: {_short(one.question)}",
        )
        for number, one in enumerate(talk.exchanges, start=1)
        if one.cost.overlay is not None
    ]


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def status(talk: Conversation) -> str:
    """What the last answer cost."""
    return talk.last.line() if talk.last is not None else ""


def banner(error: str) -> str:
    """An error for everybody to see, and for screen readers to say; empty if there is none."""
    return f'<div role="alert" class="ap-error">{html.escape(error)}</div>' if error else ""


def note(text: str) -> str:
    """A line that changes while somebody looks at it."""
    return f'<div role="status" class="ap-status">{html.escape(text)}</div>'


def examples() -> list[dict[str, Any]]:
    """Questions about the pictures in the package."""
    folder = Path(str(files("adaptprune.assets"))) / "examples"
    found = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [{"text": entry["question"], "files": [str(folder / entry["file"])]} for entry in found]
