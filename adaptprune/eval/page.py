"""A page, in one file, that shows question by question which tokens two rules keep and what the model then answers."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from adaptprune.disk import write_text
from adaptprune.engines.protocol import NONE, Engine, Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import reason
from adaptprune.eval.columns import Column
from adaptprune.eval.task import Item, Task
from adaptprune.images import data_url
from adaptprune.prompts import question
from adaptprune.viz import side_by_side

PICK_FROM = 500  # questions
SPARE = 20  # questions, in the place of those that fail
MOST_PIXELS = 4096  # of a side
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8886; padding: 1rem 0; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 18rem; } img { width: 100%; border-radius: 4px; }
.right { color: #1a7f37; } .wrong { color: #cf222e; } small { opacity: .7; }
@media (prefers-color-scheme: dark) { .right { color: #4ac26b; } .wrong { color: #ff7b72; } }
"""


def spread_out(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items, each question type in turn, no picture twice while others are left."""
    by_kind: dict[str, list[Item]] = {}
    for item in items:
        by_kind.setdefault(item.kind, []).append(item)
    chosen: list[Item] = []
    pictures: set[str] = set()
    while len(chosen) < min(count, len(items)):
        for waiting in by_kind.values():
            if waiting and len(chosen) < count:
                best = next((item for item in waiting if item.picture not in pictures), waiting[0])
                waiting.remove(best)
                pictures.add(best.picture)
                chosen.append(best)
    return chosen


def write_page(engine: Engine, task: Task, columns: Sequence[Column], path: Path, count: int = 20) -> None:
    """Answer `count` questions unpruned and under every column, and write what each kept next to one another.

    A question with which something goes wrong is left out; the page says how many were, and why the last one was.
    """
    found = [item for item in itertools.islice(task.items(), PICK_FROM) if not item.problem]
    sections: list[str] = []
    failed, why = 0, ""
    for item in spread_out(found, count + SPARE):
        if len(sections) == count:
            break
        try:
            sections.append(_section(engine, task, columns, item, len(sections) + 1))
        except Exception as error:
            failed, why = failed + 1, reason(error)
    title = f"What {' and '.join(column.name for column in columns)} keep"
    missing = f" {failed} more could not be shown, the last because of this: {html.escape(why)}." if failed else ""
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>{html.escape(task.name)}, {len(sections)} questions, one type after another. "
        f"Dropped patches are faded.{missing}</p>{''.join(sections)}</html>\n",
    )


def _section(engine: Engine, task: Task, columns: Sequence[Column], item: Item, number: int) -> str:
    """One question: its picture, if it has one, and every column's answer to it."""
    images = item.open()
    turns, sampling = question(item.prompt, images), Sampling(32, temperature=0.0)
    plain = engine.ask(turns, sampling, Pruning(NONE))
    shown = side_by_side(images) if images else None
    figures = [_figure(shown, "unpruned", plain.text, task.score(item, plain.text))]
    for column in columns:
        answer = engine.ask(turns, sampling, Pruning(column.pruner()))
        label = f"{column.method}, no visual tokens"
        if answer.visual_tokens:
            label = f"{column.method}, {answer.visual_tokens_kept} of {answer.visual_tokens} tokens"
        figures.append(_figure(answer.overlay or shown, label, answer.text, task.score(item, answer.text)))
    marks = ", ".join(sorted(item.marks)).replace("_", " ")
    head = f"{number}. {html.escape(item.prompt)}"
    note = html.escape(f"{item.kind}{', ' + marks if marks else ''}; expected: {_plain(item.expected)}")
    row = "".join(figures)
    return f"<section><h2>{head}</h2><p><small>{note}</small></p><div class=row>{row}</div></section>"


def _plain(expected: Any) -> str:
    """The expected answer, or the different ones of several people."""
    if expected is None:
        return "nobody here knows"
    return "; ".join(dict.fromkeys(expected)) if isinstance(expected, tuple) else str(expected)


def _figure(picture: Image.Image | None, label: str, answer: str, score: float | None) -> str:
    verdict = "right" if score == 1 else "wrong" if score is not None else ""
    points = "" if score is None else f" ({score:g})"
    said = html.escape(answer) or "(nothing)"
    return (
        f"<figure>{_image(picture, label)}"
        f"<figcaption>{html.escape(label)}: <b class='{verdict}'>{said}</b>{points}</figcaption></figure>"
    )


def _image(picture: Image.Image | None, label: str) -> str:
    if picture is None:
        return "<p><small>no picture</small></p>"
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))  # WebP has no more, and a page needs less
    return f"<img alt='{html.escape(label)}' src='{data_url(picture, 'webp', quality=80)}'>"
