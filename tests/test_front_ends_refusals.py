"""What every front end refuses of every family, by a line that says why: a picture's own tokens in a text, and more."""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.engines.batch.ask import Question, ask_all
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.client import Client
from adaptprune.engines.errors import EngineError
from adaptprune.engines.local import LocalEngine
from adaptprune.engines.protocol import Answer, Pruning
from adaptprune.engines.remote import RemoteEngine
from adaptprune.engines.sampling import Sampling
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.task import Item
from adaptprune.prompts import Prompter, Turn
from tests.families import FAMILY, NO_TEXT
from tests.front_ends import conversations, model_inputs, outspoken, pictures
from tests.serving import live

#: Widths and heights of pictures that, beside a specimen's own, have more rows, columns and tiles.
LARGE = [(300, 100), (100, 300), (256, 256)]
SHORT = Sampling(1, temperature=0.0)


@cache
def marks(family: str) -> dict[str, str]:
    """From the tokens that pictures put into prompts to texts with them; found out from prompts with and without."""
    one = outspoken(family)
    tokenizer = one.processor.tokenizer
    own = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    noise = np.random.default_rng(0)
    found: set[int] = set()
    for width, height in [*one.sizes, *LARGE]:
        image = Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8))
        found.update(model_inputs(family, [Turn("user", [image, "w1"])])["input_ids"].flatten().tolist())
    said = [token for token, number in tokenizer.get_added_vocab().items() if number in found and token.strip()]
    return {token: f"w1 {token} w2" for token in said if token not in own}


def others(family: str) -> list[str]:
    """Added tokens that stand for no picture, video or sound."""
    processor = outspoken(family).processor
    named = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")} | {"<image>"}
    shapes = {re.sub(r"\d+", "#", token) for token in marks(family)}
    return [
        token
        for token in processor.tokenizer.get_added_vocab()
        if token.strip() and token not in named and re.sub(r"\d+", "#", token) not in shapes
    ]


def refuses(token: str, error: BaseException | Any) -> None:
    """One line that names the token."""
    assert isinstance(error, AdaptPruneError)
    assert "\n" not in str(error)
    assert f"contains the image placeholder {token!r}: leave it out" in str(error)


@contextmanager
def refused(token: str):
    with pytest.raises(AdaptPruneError) as caught:
        yield
    refuses(token, caught.value)


@FAMILY
def test_a_picture_s_tokens_in_a_text(family):
    """By the engines in this process, whoever says it; questions asked with it are answered, and so are other words."""
    one, engines = outspoken(family), []
    assert marks(family)
    local = LocalEngine(one.model, one.processor)
    for token, text in marks(family).items():
        for role in ("user", "system", "assistant"):
            with refused(token):
                local.ask([Turn(role, [text]), Turn("user", ["w3"])], SHORT, Pruning("none"))
        with refused(token):
            local.ask([Turn("user", [pictures(family)[0], text])], SHORT, Pruning("none"))
    local.close()
    engines.append(local)
    prompter = Prompter(one.processor, one.model)
    for token in others(family):
        assert token in prompter.text([Turn("user", [f"w1 {token} w2"])])
    innocent = [pictures(family)[0], f"w1 {others(family)[0]} nonsense w2"]
    texts = [*marks(family).values(), None]
    items = [Item(str(number), "p", list, text if text else innocent[1], None, "") for number, text in enumerate(texts)]
    with Asker(one.model, one.processor, "model", len(items)) as asker:
        found, _ = ask_all(
            asker.engine, [Question([Turn("user", [text] if text else innocent)], SHORT) for text in texts]
        )
        answers, _ = asker.ask(items, {"p": [pictures(family)[0]]}, Column(UNPRUNED), 1)
    for token, error, other in zip(marks(family), found, answers, strict=False):
        refuses(token, error)
        refuses(token, other)
    assert isinstance(found[-1], tuple)
    assert isinstance(answers[-1], Answer)
    assert found[-1][0].text == answers[-1].text


@FAMILY
def test_a_picture_s_tokens_over_http(family):
    one = outspoken(family)
    with live(Engine("tiny", one.model, one.processor)) as server:
        client, ours = server.client(), RemoteEngine(Client(server.url))
        for token, text in marks(family).items():
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
            assert caught.value.body["param"] == "messages"
            assert f"contains the image placeholder {token!r}" in caught.value.body["message"]
            with refused(token):
                ours.ask([Turn("user", [text])], SHORT)


@pytest.mark.parametrize("family", NO_TEXT)
def test_words_alone_where_a_picture_is_needed(family):
    one, text = outspoken(family), "w1 w2"
    said = "takes no question without a picture.*: show one with it"
    assert "text" not in conversations(family)
    local = LocalEngine(one.model, one.processor)
    with pytest.raises(AdaptPruneError, match=said) as caught:
        local.ask([Turn("user", [text])], SHORT, Pruning("none"))
    assert "\n" not in str(caught.value)
    with live(Engine("tiny", one.model, one.processor)) as server:
        with pytest.raises(openai.BadRequestError, match=said):
            server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
        with pytest.raises(AdaptPruneError, match=said):
            server.engines["tiny"].ask([Turn("user", [text])], SHORT)
    items = [Item("0", "p", list, text, None, ""), Item("1", "", list, text, None, "")]
    with Asker(one.model, one.processor, "model", 2) as asker:
        (answer, error), _ = asker.ask(items, {"p": [pictures(family)[0]], "": []}, Column(UNPRUNED), 1)
    assert isinstance(answer, Answer)
    assert isinstance(error, EngineError)
    assert re.search(said, error.message)
