"""A page, in one file, that shows question by question which tokens two rules keep and what the model then answers."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from adaptprune.engines.transformers import TransformersEngine
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.columns import Column
from adaptprune.eval.protocol import prompt_text, square
from adaptprune.eval.task import Item, Task
from adaptprune.viz import overlay, pictures_seen, side_by_side

PICK_FROM = 500  # questions
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


class AsEvaluated(TransformersEngine):
    """Puts questions and pictures as a run's protocol does."""

    def __init__(self, model: Any, processor: Any, protocol: str) -> None:
        super().__init__(model, processor)
        self._protocol = protocol

    def inputs(self, images: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        text = prompt_text(self._protocol, self.processor, prompt, len(images))
        pictures = [square(self._protocol, self.processor, image) for image in images]
        return self.encode(pictures, text)


def write_page(engine: TransformersEngine, task: Task, columns: Sequence[Column], path: Path, count: int = 20) -> None:
    """Answer `count` questions unpruned and under every column, and write what each kept next to one another."""
    sections = []
    found = (item for item in itertools.islice(task.items(), PICK_FROM) if not item.problem)
    for number, item in enumerate(spread_out(list(found), count), 1):
        try:
            images = item.images()
        except AdaptPruneError:
            continue  # it is among the run's problems
        plain = engine.answer(images, item.prompt, max_new_tokens=32)
        figures = [_figure(side_by_side(images), "unpruned", plain.text, task.score(item, plain.text))]
        for column in columns:
            answer = engine.answer(images, item.prompt, column.pruner(), max_new_tokens=32)
            assert answer.report is not None
            sample = answer.report.samples[0]
            picture = overlay(images, sample, pictures_seen(engine.processor, answer.inputs, sample))
            label = f"{column.method}, {sample.num_kept} of {sample.num_visual} tokens"
            figures.append(_figure(picture, label, answer.text, task.score(item, answer.text)))
        marks = ", ".join(sorted(item.marks)).replace("_", " ")
        head = f"{number}. {html.escape(item.prompt)}"
        note = f"{item.kind}{', ' + marks if marks else ''}; expected: {html.escape(_plain(item.expected))}"
        row = "".join(figures)
        sections.append(f"<section><h2>{head}</h2><p><small>{note}</small></p><div class=row>{row}</div></section>")
    title = f"What {' and '.join(column.name for column in columns)} keep"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>{task.name}, {len(sections)} questions, one type after another. Dropped patches are dimmed.</p>"
        f"{''.join(sections)}</html>\n",
        encoding="utf-8",
    )


def _plain(expected: Any) -> str:
    """The expected answer, or the different ones of several people."""
    if expected is None:
        return "nobody here knows"
    return "; ".join(dict.fromkeys(expected)) if isinstance(expected, tuple) else str(expected)


def _figure(picture: Image.Image, label: str, answer: str, score: float | None) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    verdict = "right" if score == 1 else "wrong" if score is not None else ""
    points = "" if score is None else f" ({score:g})"
    said = html.escape(answer) or "(nothing)"
    return (
        f"<figure><img alt='{html.escape(label)}' src='data:image/webp;base64,{data}'>"
        f"<figcaption>{html.escape(label)}: <b class='{verdict}'>{said}</b>{points}</figcaption></figure>"
    )
