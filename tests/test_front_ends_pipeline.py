"""transformers' own pipeline under `prune`, for every family, and as docs/models.md shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

import adaptprune
from tests.families import FAMILY
from tests.front_ends import (
    STEPS,
    ask_library,
    conversations,
    expected,
    messages,
    options,
    outspoken,
    pictures,
    written,
)

TEXT = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
#: The zoo's stand-ins for processors that need torchvision or take fewer kinds of lists are no `ProcessorMixin`: the
#: pipeline finds no template, or no tensors that know of types.
STAND_INS = {
    "llava_pixtral": ("one", "two", "text"),
    "mistral3": ("one", "two", "text"),
    "got_ocr2": ("text",),
}


def pipeline(family: str) -> Any:
    one = outspoken(family)
    made = transformers.pipeline("image-text-to-text", model=one.model, processor=one.processor)
    return lambda *given, **named: made(
        *given, generate_kwargs={"max_new_tokens": STEPS, "do_sample": False}, return_full_text=False, **named
    )


@FAMILY
def test_conversations(family):
    one, found, ask = outspoken(family), expected(family), pipeline(family)
    for name, turns in conversations(family).items():
        if name in STAND_INS.get(family, ()):
            with pytest.raises((AttributeError, TypeError), match="apply_chat_template|'dtype'"):
                ask(messages(turns, shown=True))
            continue
        with adaptprune.prune(one.model, **options(family)) as report:
            (answer,) = ask(messages(turns, shown=True))
        wanted = found[name, True]
        assert answer["generated_text"].strip() == wanted.text
        if name != "text":
            assert (report.num_visual, report.num_kept) == (wanted.visual, wanted.kept)
        else:
            assert report is None or not report.num_visual
        (answer,) = ask(messages(turns, shown=True))
        assert answer["generated_text"].strip() == found[name, False].text


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "internvl"])
def test_pictures_beside_their_text_and_several_at_once(family):
    """Text with placeholders, and lists of conversations, which the pipeline reads one after another."""
    one, found, ask = outspoken(family), expected(family), pipeline(family)
    said = conversations(family)
    with adaptprune.prune(one.model, **options(family)) as report:
        (answer,) = ask(images=[pictures(family)[0]], text=written(one.processor, said["one"]))
        assert answer["generated_text"].strip() == found["one", True].text
        assert report.num_kept == found["one", True].kept
        many = ask([messages(said[name], shown=True) for name in ("two", "one", "text")])
    assert [answer["generated_text"].strip() for (answer,) in many] == [
        found[name, True].text for name in ("two", "one", "text")
    ]


def test_rows_of_one_batch():
    """`batch_size` puts conversations into one forward; each is pruned as if it were alone."""
    family = "llava"
    one, ask = outspoken(family), pipeline(family)
    turns = [conversations(family)["one"], conversations(family)["one"]]
    with adaptprune.prune(one.model, **options(family)):
        many = ask([messages(each, shown=True) for each in turns], batch_size=2)
    wanted = ask_library(family, turns[0], True)
    assert [answer["generated_text"].strip() for (answer,) in many] == [wanted.text] * 2


def test_what_the_documentation_shows(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.splitlines()[:2] == re.findall(r"# (.+)", code)[-2:]
