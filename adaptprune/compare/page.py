"""A comparison as one HTML file, pictures inside it, without scripts. All that a model said is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from adaptprune.compare import Compared
from adaptprune.compare.sheet import cost
from adaptprune.images import data_url

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 90rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem; }
article { border-top: 2px solid #8886; padding-top: .5rem; overflow-wrap: anywhere; }
img { width: 100%; border-radius: 4px; display: block; margin: .5rem 0; }
h2 { font-size: 1rem; margin: 0; } p { margin: .25rem 0; white-space: pre-wrap; }
.error { color: #b42318; } small { opacity: .75; }
@media (prefers-color-scheme: dark) { .error { color: #ff8a80; } }
"""


def page(rows: Sequence[Compared], prompt: str, images: Sequence[Image.Image], model: str) -> str:
    """The whole page."""
    asked = "".join(_picture(image, "the picture that was asked about") for image in images)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Rules compared</title>"
        f"<style>{STYLE}</style></head><body><h1>{html.escape(prompt)}</h1>"
        f"<p><small>{html.escape(_named(model))}. Bright patches were kept; in the maps, the lighter, the higher a "
        "rule ranked a patch. Times are medians on the machine at hand.</small></p>"
        f"<main><article><h2>the question's picture</h2>{asked}</article>"
        + "".join(map(_article, rows))
        + "</main></body></html>\n"
    )


def _named(model: str) -> str:
    """A name of the hub as it is, of a folder its last part alone: pages are handed on."""
    return Path(model).name if Path(model).is_dir() else model


def _article(row: Compared) -> str:
    parts = [f"<h2>{html.escape(row.title)}</h2>"]
    if row.error is not None or row.answer is None:
        parts.append(f'<p class="error">{html.escape(row.error or "no answer")}</p>')
    else:
        parts.append(f"<p>{html.escape(row.answer.text or '(empty)')}</p><small>{html.escape(cost(row))}</small>")
        for picture, what in ((row.answer.overlay, "what was kept"), (row.answer.heat, "how patches were ranked")):
            if picture is not None:
                parts.append(_picture(picture, f"{row.method}: {what}"))
    return f"<article>{''.join(parts)}</article>"


def _picture(picture: Image.Image, what: str) -> str:
    small = picture.convert("RGB")
    small.thumbnail((960, 960))
    return f'<img alt="{html.escape(what)}" src="{data_url(small)}">'
