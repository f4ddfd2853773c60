"""Conversations as HTML for the page. What a visitor, a model or a server says goes through `text`. No events here."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from adaptprune.web.exchange import Comparison, Conversation, Exchange
from adaptprune.web.pictures import Pictures

VOTES = {"upvote": "Good", "downvote": "Bad", "flag": "Flag"}
CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "Tie", "neither": "Both are bad"}
SENTENCE = "Ask about a picture, and see which few parts of it the model kept to answer."
#: Characters of an error, a notice or a name that are shown.
LONGEST = 400
#: Control characters, halves of characters, and marks that turn the direction of writing: a text could read as what it
#: is not. Arabic and Hebrew do without those marks.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(said: str, longest: int | None = None) -> str:
    """Text that cannot be anything else in a page: escaped, without what is invisible and changes its meaning."""
    kept = HIDDEN.sub("", said)
    if longest is not None and len(kept) > longest:
        kept = kept[: longest - 1] + "…"
    return html.escape(kept)


# -- a conversation ---------------------------------------------------------------------------------------------------


def conversation(talk: Conversation, pictures: Pictures, votes: bool) -> str:
    """The chat; examples in an empty one."""
    if not talk.exchanges:
        return examples(pictures, "Attach a picture below and ask about it, or try one of these:")
    last = talk.last
    shown = [
        exchange(one, f"{talk.id}-{place}", pictures, votes, one is last) for place, one in enumerate(talk.exchanges)
    ]
    return f'<div class="ap-talk" role="log" tabindex="0" aria-label="Conversation"><div>{"".join(shown)}</div></div>'


def exchange(one: Exchange, name: str, pictures: Pictures, votes: bool, last: bool) -> str:
    """A question and its answer, with what it cost beside it."""
    acts = _acts(one, votes, last)
    return (
        f'<article class="ap-exchange">{question(one, pictures)}<div class="ap-reply">'
        f'<div class="ap-said">{answer(one)}{_remarks(one)}{acts}</div>{kept(one, name, pictures)}</div></article>'
    )


def question(one: Exchange, pictures: Pictures) -> str:
    """The visitor's bubble, with thumbnails."""
    images = "".join(
        f'<img src="{html.escape(url)}" alt="{text(Path(image).name, 80)}">'
        for image in one.images
        if (url := pictures.thumbnail(image))
    )
    return f'<div class="ap-question">{images}<p dir="auto">{text(one.question)}</p></div>'


def answer(one: Exchange) -> str:
    """An answer, or what stands in its place."""
    if one.answer:
        return f'<div class="ap-answer" dir="auto">{text(one.answer)}</div>'
    said = {"waiting": "…", "stopped": "(stopped before the first word)", "failed": "(failed)"}
    return f'<div class="ap-answer ap-nothing">{said.get(one.state, "(an empty answer)")}</div>'


def kept(one: Exchange, name: str, pictures: Pictures) -> str:
    """The overlay and the numbers; nothing before there are any."""
    return f'<div class="ap-kept">{overlay(one, name, pictures)}{numbers(one)}</div>' if one.numbers() else ""


def overlay(one: Exchange, name: str, pictures: Pictures) -> str:
    """The picture of what was kept, which opens in full size."""
    if one.cost.overlay is None:
        return ""
    if not one.picture:
        one.picture = pictures.keep(one.cost.overlay)
    url, (width, height) = html.escape(one.picture), one.cost.overlay.size
    image = (
        f'<img src="{url}" width="{width}" height="{height}" alt="The picture, with the parts that were kept outlined">'
    )
    full = (
        f'{image}<a href="{url}" download>Download</a>'
        f'<button type="button" popovertarget="kept-{name}" popovertargetaction="hide">Close</button>'
    )
    return (
        f'<button type="button" class="ap-open" popovertarget="kept-{name}" aria-label="Show it in full size">{image}'
        f'</button><div class="ap-full" id="kept-{name}" popover>{full}</div>'
    )


def numbers(one: Exchange) -> str:
    """What it cost, large."""
    rows = "".join(f"<div><dd>{number}</dd><dt>{what}</dt></div>" for number, what in one.numbers())
    return f'<dl class="ap-numbers">{rows}</dl>' if rows else ""


def _remarks(one: Exchange) -> str:
    return f'<p class="ap-remarks">{" · ".join(one.remarks())}</p>' if one.over and one.remarks() else ""


def _acts(one: Exchange, votes: bool, last: bool) -> str:
    if not one.over:
        return ""
    buttons = [_button("copy", "Copy")] if one.answer else []
    if last:
        buttons.append(_button("again", "Ask again"))
        buttons += _votes(VOTES, one.vote) if votes else []
    return f'<div class="ap-acts">{"".join(buttons)}</div>' if buttons else ""


def _votes(names: Mapping[str, str], given: str) -> list[str]:
    return [_button(kind, name, pressed=kind == given, off=bool(given)) for kind, name in names.items()]


def _button(act: str, name: str, *, pressed: bool | None = None, off: bool = False) -> str:
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    # not "disabled", which would throw the focus of who has just pressed it back to the top of the page
    return f'<button type="button" data-act="{act}"{state}{" aria-disabled=true" if off else ""}>{name}</button>'


# -- a comparison -----------------------------------------------------------------------------------------------------


def comparison(both: Comparison | None, pictures: Pictures, votes: bool) -> str:
    """Two answers, row by row, so that what belongs together is level; examples if nothing was compared yet."""
    if both is None:
        return examples(pictures, "Ask two sides the same question above, or try one of these:")
    sides = {"Left": both.left, "Right": both.right}
    rows = [
        [f'<h3 dir="auto">{title}: {text(_asked(one), 120)}</h3>' for title, one in sides.items()],
        [f"{answer(one)}{_remarks(one)}" for one in sides.values()],
        [numbers(one) for one in sides.values()],
        [overlay(one, f"{both.id}-{title}", pictures) for title, one in sides.items()],
    ]
    cells = "".join(
        f'<div class="ap-{title.lower()}">{cell}</div>'
        for row in rows
        if any(row)
        for title, cell in zip(sides, row, strict=True)
    )
    judged = votes and both.left.over and both.right.over
    acts = f'<div class="ap-acts">{"".join(_votes(CHOICES, both.choice))}</div>' if judged else ""
    return f'<div class="ap-both">{question(both.left, pictures)}<div class="ap-sides">{cells}</div>{acts}</div>'


def _asked(one: Exchange) -> str:
    """Which model and method answered."""
    return f"{one.controls.model}, {one.controls.method}"


# -- around them ------------------------------------------------------------------------------------------------------


def examples(pictures: Pictures, invitation: str) -> str:
    """Questions to try with one click."""
    cards = "".join(
        f'<button type="button" data-act="example-{place}"><img src="{html.escape(pictures.thumbnail(one["file"]))}"'
        f' alt=""><span>{text(one["question"])}</span></button>'
        for place, one in enumerate(list_examples())
    )
    return f'<div class="ap-empty"><p>{invitation}</p><div class="ap-examples">{cards}</div></div>'


@lru_cache(maxsize=1)
def list_examples() -> list[dict[str, str]]:
    """Questions about the pictures in the package: "question" and "file"."""
    folder = Path(str(files("adaptprune.assets"))) / "examples"
    found: list[dict[str, Any]] = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [{"question": entry["question"], "file": str(folder / entry["file"])} for entry in found]


def head(about: str, recorded: bool) -> str:
    """Name of the page and what it does."""
    more = [text(about, LONGEST)] if about else []
    more += ["Conversations, with their images, are recorded on this server."] if recorded else []
    return f"<h1>adaptprune</h1><p>{SENTENCE}</p>{''.join(f'<p class=ap-small>{line}</p>' for line in more)}"


def notices(said: Mapping[str, str]) -> str:
    """What people should know of models before they believe them."""
    of: dict[str, list[str]] = {}
    for name, notice in said.items():
        of.setdefault(notice, []).append(name)
    lines = "".join(
        f"<p>{text(', '.join(names), 80)}: {text(notice, LONGEST)}</p>" for notice, names in list(of.items())[:5]
    )
    return f'<div class="ap-notice">{lines}</div>' if lines else ""


def labelled(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that a server gave, for a list: what is shown, and the name."""
    return [(html.unescape(text(name, 80)), name) for name in names]


def banner(error: str) -> str:
    """An error for everybody to see, and for screen readers to say; empty if there is none."""
    return f'<div role="alert" class="ap-error" dir="auto">{text(error, LONGEST)}</div>' if error else ""


def note(said: str) -> str:
    """A line that changes while somebody looks at it."""
    return f'<div role="status" class="ap-status">{text(said, LONGEST)}</div>'
