"""What a visitor, a model or a server says is text on the page, and a number is a number; and what one may ask for."""

from __future__ import annotations

import base64
import io
import os
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from PIL import Image

import adaptprune.engines.client as client_module
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.client import ClientError, Cost, ServedModel, data_url
from adaptprune.errors import AdaptPruneError
from adaptprune.serve.asks import MAX_TEXT
from adaptprune.serve.pictures import ImageLimits
from adaptprune.web import views
from adaptprune.web.exchange import MAX_ANSWER, Comparison, Controls, Conversation, Exchange
from adaptprune.web.launch import MAX_BODY
from adaptprune.web.pictures import OVERLAY, THUMBNAIL, Pictures
from adaptprune.web.talk import IMAGES, MAX_TOKENS, for_people
from tests.webpage import CLOTH, COST, desk, finish

# -- what the page shows ----------------------------------------------------------------------------------------------


HOSTILE = [
    '<img src="http://elsewhere.test/x.png" onerror=alert(1)>', "![](http://elsewhere.test/x.png)",
    "[click](javascript:alert(1))", "<script>alert(1)</script>", '<form action="http://elsewhere.test"><input></form>',
    "<style>*{display:none}</style>", '<iframe src="http://elsewhere.test"></iframe>', "<svg onload=alert(1)>",
    '<meta http-equiv="refresh" content="0;url=http://elsewhere.test">', "</div></div></div><h1>over</h1>",
    '" onmouseover="alert(1)', "' onmouseover='alert(1)", "&lt;b&gt;", "$\\href{javascript:alert(1)}{x}$",
    "\u202egnp.exe", "\ud83d", "a\x00b\x1b[31m", "W" * 100_000, "{{constructor}} ${alert(1)} `x`",
]  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    return Pictures(tmp_path / "pictures", set())


class Elements(HTMLParser):
    """The elements and attributes of a piece of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, frozenset[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, frozenset(name for name, _ in attrs)))


@pytest.mark.parametrize("said", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_said_is_text(said, pictures):
    """Questions, answers, models, methods, errors, notices and addresses make no element and no attribute."""

    def shown(text: str) -> list[str]:
        exchange = Exchange(text, (), Controls(text, text), answer=text, state="done", cost=COST)
        talk = Conversation([exchange], id="x")
        both = Comparison(exchange, exchange, id="x")
        return [
            views.conversation(talk, pictures, votes=True),
            views.comparison(both, pictures, votes=True),
            views.notices({text: text}),
            views.banner(text),
            views.note(text),
            views.head(text, recorded=True),
        ]

    for bad, good in zip(shown(said), shown("harmless"), strict=True):
        assert Elements(bad).found == Elements(good).found
        bad.encode("utf-8")
        assert not views.HIDDEN.search(bad)
    (label, name), *_ = views.labelled([said])
    assert name == said
    assert len(label) <= 80


def test_numbers_are_shown_large_and_only_if_there_are_any(pictures):
    exchange = Exchange("?", (CLOTH,), Controls("a"), answer="x", state="done", cost=COST)
    assert exchange.numbers() == [
        ("57 of 576", "picture tokens kept"),
        ("12 ms", "to the first token"),
        ("90 %", "of the tokens saved"),
    ]
    assert exchange.remarks() == ["3 tokens written"]
    page = views.conversation(Conversation([exchange]), pictures, votes=False)
    assert page.count("<dd>") == 3
    assert "upvote" not in page
    exchange.cost = Cost()
    assert "ap-kept" not in views.conversation(Conversation([exchange]), pictures, votes=False)
    exchange.cost = Cost(visual_tokens=0, visual_tokens_kept=0, first_token_ms=12_345.0)
    assert exchange.numbers() == [("12.3 s", "to the first token")]


def test_votes_stand_by_an_answer_alone(pictures):
    exchange = Exchange("?", (), Controls("a"))
    talk = Conversation([exchange])
    for state, offered in (("waiting", 0), ("writing", 0), ("failed", 0), ("done", 3), ("stopped", 3)):
        exchange.state = state
        assert views.conversation(talk, pictures, votes=True).count("aria-pressed") == offered
    exchange.vote = "flag"
    page = views.conversation(talk, pictures, votes=True)
    assert page.count("aria-disabled") == 3
    assert page.count('aria-pressed="true"') == 1
    talk.exchanges.append(Exchange("?", (), Controls("a"), state="done"))
    assert views.conversation(talk, pictures, votes=True).count("aria-pressed") == 3  # the last answer's


def test_pictures_are_small_copies(pictures, tmp_path):
    url = pictures.thumbnail(CLOTH)
    path = Path(unquote(url.partition("=")[2]))
    assert max(Image.open(path).size) == THUMBNAIL
    assert path.stat().st_size < 20_000
    assert pictures.thumbnail(CLOTH) == url
    assert str(path) in pictures._made
    assert max(Image.open(unquote(pictures.keep(Image.new("RGB", (9000, 10))).partition("=")[2])).size) == OVERLAY
    bad = tmp_path / "bad.png"
    bad.write_text("<svg>")
    assert pictures.thumbnail(str(bad)) == ""


# -- what a server may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["7", True, -1, 10**12, 1.5, float("nan"), None, [7], {"a": 1}])
def test_numbers_that_cannot_be_true_are_not_reported(value):
    usage = SimpleNamespace(
        prompt_tokens=value,
        completion_tokens=value,
        model_extra={
            "pruning": {"method": value, "visual_tokens": value, "visual_tokens_kept": value, "overlay": value},
            "timing": {"first_token_ms": value if value != 1.5 else -1.5, "total_ms": value if value != 1.5 else "1"},
        },
    )
    cost = client_module._cost(usage, value)
    method = finish = value if isinstance(value, str) else None
    assert cost == Cost(method=method, finish=finish)
    for extra in (value, {"pruning": value, "timing": value}):
        assert client_module._cost(SimpleNamespace(model_extra=extra), "stop") == Cost(finish="stop")


def test_more_kept_than_there_is_is_not_reported():
    usage = SimpleNamespace(model_extra={"pruning": {"visual_tokens": 5, "visual_tokens_kept": 6}})
    assert client_module._cost(usage, "stop").visual_tokens is None


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_an_overlay_is_bounded_before_it_is_decoded(monkeypatch):
    picture = client_module._picture
    assert picture(encoded(Image.new("RGB", (30, 20), "red"))).size == (30, 20)
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # 400 million pixels in few bytes
    assert len(bomb) < 200_000
    loaded = []
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size))
    assert picture(bomb) is None
    assert loaded == []
    monkeypatch.undo()
    good = encoded(Image.new("RGB", (30, 20), "red"))
    jpeg = encoded(Image.new("RGB", (30, 20), "red"), "JPEG")
    for bad in (good[:60], good + "!", jpeg, "data:image/svg+xml;base64,PHN2Zz4=", "http://elsewhere.test/x.png", ""):
        assert picture(bad) is None
    monkeypatch.setattr(client_module, "MAX_OVERLAY", 10)
    assert picture(good) is None


def test_names_that_cannot_be_shown_are_left_out():
    one = desk()
    one._client.served = [
        ServedModel("fine", ("ok", "x" * 501, "\ud800", "")),
        ServedModel("y" * 501),
        ServedModel("\udfff"),
    ]
    one._client.served += [ServedModel(f"m{number}", notice="\ud800!") for number in range(2000)]
    names = one.refresh()
    assert names[0] == "fine"
    assert len(names) == 1000
    assert one.methods("fine") == ["default", "ok", "none"]
    assert one.notices()["m1"] == "\ufffd!"


def test_an_endless_answer_is_cut():
    def endless():
        while True:
            yield "W" * 30_000 + "\ud83d"

    one = desk(endless())
    talk = Conversation()
    finish(one.ask(talk, "?", [], Controls("a"), threading.Event()))
    assert (len(talk.last.answer), talk.last.state) == (MAX_ANSWER, "done")
    assert f"cut at {MAX_ANSWER:,} characters" in talk.last.remarks()
    for _ in range(100):
        if one._client.closed:
            break
        threading.Event().wait(0.02)
    assert one._client.closed == 1  # the server hears of it
    talk.last.answer.encode("utf-8")


def test_no_address_and_no_part_of_a_request_is_shown_to_people():
    said = [
        "the server refused (400): 'messages[0].content[1].image_url' is damaged or cut off (broken): save it again.",
        "the server refused (404): POST /v1/chat/completions: Not Found.",
        "the server refused (400): messages[12] has an image.",
        "no such thing as /v1/models here",
    ]
    for one in said:
        told = for_people(one)
        assert "messages[" not in told
        assert "/v1" not in told
        assert "POST" not in told
    assert for_people(said[0]).endswith("the image is damaged or cut off (broken): save it again.")
    assert (
        for_people("the server at http://127.0.0.1:8000 cannot be reached")
        == "the server at http://127.0.0.1:8000 cannot be reached"
    )
    one = desk([ClientError(said[1])])
    with pytest.raises(AdaptPruneError, match="Not Found") as caught:
        finish(one.ask(Conversation(), "?", [], Controls("a"), threading.Event()))
    assert "/v1" not in str(caught.value)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_the_page_refuses_what_the_engine_would_and_nothing_else(tmp_path):
    """Images, pixels and characters of a conversation, and new tokens: the page's numbers are the server's own."""
    assert ImageLimits() == IMAGES
    assert EngineLimits().max_tokens == MAX_TOKENS
    one, talk, stop = desk(*[["x"]] * 9), Conversation(), threading.Event()
    finish(one.ask(talk, "?", [CLOTH] * IMAGES.max_images, Controls("a"), stop))
    with pytest.raises(AdaptPruneError, match=r"17 images, more than the 16"):
        finish(one.ask(talk, "?", [CLOTH], Controls("a"), stop))
    with pytest.raises(AdaptPruneError, match="400,001 characters"):
        finish(one.ask(Conversation(), "x" * (MAX_TEXT + 1), [], Controls("a"), stop))
    large = tmp_path / "large.png"
    Image.new("1", (6000, 6000)).save(large)  # 36 million pixels
    finish(one.ask(Conversation(), "?", [str(large)], Controls("a"), stop))
    with pytest.raises(AdaptPruneError, match="72,000,000 pixels together, more than the 50,000,000"):
        finish(one.ask(Conversation(), "?", [str(large)] * 2, Controls("a"), stop))


def test_whatever_the_page_lets_through_fits_in_a_request():
    """As many pixels of noise as a conversation may have, which no format makes smaller."""
    side = 7071
    noise = Image.frombytes("RGB", (side, side // 10), os.urandom(side * (side // 10) * 3))
    tenth = len(data_url(noise))
    assert side * (side // 10) * 10 <= IMAGES.max_pixels
    assert tenth * 10 < MAX_BODY
