"""The page under the eyes of a visitor: contrast, sizes, widths, focus and scrolling, in a browser."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.client import Client
from adaptprune.methods import make_pruner
from adaptprune.web.launch import page, serving
from tests.webpage import PHONE, Says, Upstream, Visits, add, answers, ask, chromium, running

WIDTHS = {1400: 900, 390: 844, 320: 640}
#: Set to a folder to have these pictures of the page written into it; docs/images holds them.
SHOTS = os.environ.get("ADAPTPRUNE_SCREENSHOTS")
NAMES = {
    (1400, "light", "judged"): "web-desktop",
    (1400, "dark", "compared"): "web-compare-dark",
    (390, "light", "judged"): "web-phone",
}

#: Contrast of every visible text with what is behind it, by WCAG 2: [ratio, what is needed, size, text]. Disabled
#: controls are exempt. Colours with alpha are laid over what is behind them.
CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const rgba = colour => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const behind = one => {
        const layers = [];
        for (let at = one; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const linear = c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const light = colour => [.2126, .7152, .0722].reduce((sum, part, i) => sum + part * linear(colour[i] / 255), 0);
    const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
    const off = one => one.closest('[disabled], [aria-disabled=true], fieldset:disabled') !== null;
    const seen = one => one.checkVisibility({opacityProperty: true, visibilityProperty: true});
    const found = [];
    const note = (one, colour, text) => {
        const style = getComputedStyle(one), back = behind(one), size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
        found.push([ratio(over(rgba(colour), back), back), large ? 3 : 4.5, size, text.trim().slice(0, 60)]);
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode.textContent, one = texts.currentNode.parentElement;
        if (!text.trim() || ['SCRIPT', 'STYLE'].includes(one.tagName) || !seen(one) || off(one)) continue;
        if (one.getBoundingClientRect().width <= 1 || one.closest('[tabindex="-1"]')) continue; // for screen readers
        note(one, getComputedStyle(one).color, text);
    }
    for (const one of document.querySelectorAll('input:not([type=range]):not([type=file]), textarea')) {
        if (!seen(one) || off(one)) continue;
        if (one.value) note(one, getComputedStyle(one).color, one.value);
        else if (one.placeholder) note(one, getComputedStyle(one, '::placeholder').color, one.placeholder);
    }
    return found;
}"""
#: What can be pressed and is smaller than a thumb.
SMALL = """() => [...document.querySelectorAll(
    'button, a[href], input:not([type=file]), textarea, select, summary, [role=button], [role=tab], [role=option]'
)].filter(one => one.checkVisibility({visibilityProperty: true}) && !one.closest('[tabindex="-1"]')).map(one => {
    const box = one.getBoundingClientRect();
    return [Math.round(box.width * 10) / 10, Math.round(box.height * 10) / 10, one.outerHTML.slice(0, 140)];
}).filter(([width, height]) => width < 44 || height < 44)"""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    engines = {"pocket": Engine("pocket", *adaptprune.load(), pruner=make_pruner("adaptprune"))}
    with serving(engines) as client, page(client, tmp_path_factory.mktemp("log"), port=0) as address:
        yield address


@pytest.fixture
def visit(browser, url):
    visits = Visits(browser, url)
    yield visits.open
    assert visits.close() == []


def states(tab: Page) -> Iterator[str]:
    """The page in all of its states, one after the other."""
    yield "empty"
    ask(tab, " ")
    expect(tab.locator("#banner [role=alert]")).to_be_visible()
    yield "an error"
    add(tab, "cloth")
    tab.fill("#question textarea", "What colour is the triangle?")
    yield "a question with a picture"
    tab.press("#question textarea", "Enter")
    expect(answers(tab)).to_have_text(["orange"])
    tab.wait_for_timeout(300)
    yield "answered"
    tab.get_by_role("button", name="Good").click()
    expect(tab.locator("#status")).to_have_text("Thank you, noted.")
    yield "judged"
    tab.locator(".ap-open").click()
    yield "in full size"
    tab.get_by_role("button", name="Close").click()
    tab.get_by_label("Method", exact=True).click()
    expect(tab.get_by_role("option").first).to_be_visible()
    yield "a list"
    tab.keyboard.press("Escape")
    for name in ("Webcam", "Sampling"):
        tab.get_by_role("button", name=name).click()
    expect(tab.get_by_label("number input for Max tokens")).to_be_visible()
    yield "all open"
    tab.get_by_role("button", name="Sampling").click()
    tab.get_by_role("tab", name="Compare").click()
    yield "compare"
    tab.locator("#answers").get_by_role("button", name="What shape is the pink object?").click()
    expect(tab.locator("#answers .ap-answer")).to_have_text(["cross", "cross"])
    expect(tab.get_by_role("button", name="Tie")).to_be_visible()
    tab.wait_for_timeout(300)
    yield "compared"


def shot(tab: Page, path: str) -> None:
    """A picture of the window, in few colours."""
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    tab.wait_for_timeout(1000)  # pictures fade in
    picture = Image.open(io.BytesIO(tab.screenshot(full_page="compare" in path))).convert("RGB")
    picture.thumbnail((1000, 1400), Image.Resampling.LANCZOS)
    few = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_contrast_sizes_and_widths(visit, width, scheme):
    """In every state: WCAG AA, 44 px for a thumb, nothing to scroll sideways, and nothing that changes its width."""
    tab = visit(viewport={"width": width, "height": WIDTHS[width]}, color_scheme=scheme)
    widths = set()
    worst = 99.0
    for state in states(tab):
        tab.mouse.move(0, 0)
        found = tab.evaluate(CONTRAST)
        assert len(found) > 10
        assert [one for one in found if one[0] < one[1]] == [], state
        worst = min(worst, *(ratio for ratio, *_ in found))
        assert tab.evaluate(SMALL) == [], state
        assert tab.evaluate(SIDEWAYS) <= 0, state
        if state == "answered":
            end = tab.evaluate(END)  # in view although the overlay, the numbers and the buttons came below it
            assert end["top"] + 20 <= end["at"] <= end["bottom"]
        if SHOTS and (name := NAMES.get((width, scheme, state))):
            shot(tab, f"{SHOTS}/{name}.png")
        box = tab.locator("[role=tabpanel]:visible").first.bounding_box()
        widths.add((box["x"], box["width"]))
    print(f"{width} {scheme}: least contrast {worst:.2f}")
    assert len(widths) == 1


def test_the_numbers_are_the_largest(visit):
    tab = visit(viewport={"width": 390, "height": 844})
    tab.get_by_role("button", name="What colour is the triangle?").click()
    expect(tab.locator("#chat .ap-numbers dd")).to_have_count(3)
    sizes = {text: size for _, _, size, text in tab.evaluate(CONTRAST)}
    largest = max(sizes.values())
    assert {text for text, size in sizes.items() if size == largest} == set(
        tab.locator("#chat .ap-numbers dd").all_text_contents()
    )


def test_the_box_of_the_conversation_keeps_its_size(visit):
    tab = visit(viewport={"width": 1400, "height": 900})
    before = tab.locator("#question").bounding_box()
    tab.get_by_role("button", name="What colour is the triangle?").click()
    expect(answers(tab)).to_have_text(["orange"])
    ask(tab, "What shape is the pink object?")
    expect(answers(tab)).to_have_text(["orange", "heart"])
    assert tab.locator("#question").bounding_box() == before


# -- while an answer arrives ------------------------------------------------------------------------------------------

LONG = " ".join(f"word{number}" for number in range(400))
TYPED = "This sentence is typed while the answer arrives, and it stays whole."


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A page over a server that writes slowly."""
    upstream = Upstream()
    usage = {"pruning": {"visual_tokens": 576, "visual_tokens_kept": 144}, "timing": {"first_token_ms": 100}}
    upstream.says["long?"] = Says(LONG, piece=80, pause=0.08, usage=usage)
    upstream.says["short?"] = Says("yes, it is.", usage=usage)
    upstream.says["broken?"] = Says("x" * 100, piece=10, pause=0.1, status=400, body={"error": {"message": "no"}})
    with running(upstream), page(Client(upstream.url), None, port=0) as address:
        yield address


@pytest.fixture
def slowly(browser, slow):
    visits = Visits(browser, slow)
    yield visits.open
    assert visits.close() == []


WINDOWS = {"wide": {}, "phone": PHONE, "narrow": {"viewport": {"width": 320, "height": 640}}}


@pytest.mark.parametrize("window", WINDOWS)
def test_an_answer_that_arrives_takes_nothing_from_who_types(slowly, window):
    """The focus stays, the page does not scroll, every letter arrives; the end of the answer is in view in its box."""
    tab = slowly(**WINDOWS[window])
    box = tab.locator("#question textarea")
    ask(tab, "long?")
    expect(answers(tab).last).to_contain_text("word3")
    box.focus()
    scrolled = tab.evaluate("scrollY")
    for letter in TYPED:
        tab.keyboard.type(letter)
        tab.wait_for_timeout(40)
        assert tab.evaluate("scrollY") == scrolled
        end = tab.evaluate(END)
        assert end["top"] <= end["at"] <= end["bottom"] + 1
        assert tab.evaluate("document.activeElement === document.querySelector('#question textarea')")
    expect(answers(tab).last).to_have_text(LONG)
    expect(tab.get_by_role("button", name="Stop").first).to_be_disabled()
    tab.wait_for_timeout(300)
    expect(box).to_have_value(TYPED)
    expect(box).to_be_focused()
    assert tab.evaluate("scrollY") == scrolled
    end = tab.evaluate(END)
    assert end["top"] <= end["at"] <= end["bottom"]  # also once the numbers have come below it
    assert 0 <= end["at"] <= tab.viewport_size["height"]


#: Where the text of the last answer ends, and the conversation's box.
END = """() => {
    const box = document.querySelector('.ap-talk').getBoundingClientRect();
    const text = [...document.querySelectorAll('.ap-answer')].at(-1).getBoundingClientRect();
    return {top: box.top, bottom: box.bottom, at: text.bottom};
}"""


def test_who_reads_further_up_is_left_there_until_asking(slowly):
    tab = slowly(**PHONE)
    ask(tab, "long?")
    expect(answers(tab)).to_have_text([LONG])
    ask(tab, "long?")
    expect(answers(tab)).to_have_count(2)
    expect(answers(tab).last).to_contain_text("word3")
    tab.evaluate("document.querySelector('.ap-talk').scrollTop = 100")
    first = tab.evaluate("document.querySelector('.ap-question').getBoundingClientRect().top")
    expect(answers(tab)).to_have_text([LONG, LONG])
    assert abs(tab.evaluate("document.querySelector('.ap-question').getBoundingClientRect().top") - first) <= 2
    ask(tab, "short?")
    expect(answers(tab)).to_have_count(3)
    expect(answers(tab).last).to_have_text("yes, it is.")
    end = tab.evaluate(END)
    assert end["top"] <= end["at"] <= end["bottom"]


def test_a_failed_question_comes_back_and_what_was_typed_stays(slowly):
    tab = slowly()
    ask(tab, "broken?")
    expect(tab.locator("#banner [role=alert]")).to_contain_text("no")
    expect(tab.locator("#question textarea")).to_have_value("broken?")
    expect(answers(tab)).to_have_count(0)


def test_visitors_log_in(browser):
    with (
        running(Upstream()) as upstream,
        page(Client(upstream.url), None, port=0, auth=("me", "a long one")) as address,
    ):
        tab = browser.new_page()
        refused: list[str] = []
        tab.on("console", lambda said: refused.append(said.text) if "Security Policy" in said.text else None)
        tab.goto(address)
        for word, shown in (("a wrong one", 0), ("a long one", 1)):
            tab.get_by_test_id("textbox").fill("me")
            tab.get_by_test_id("password").fill(word)
            tab.get_by_role("button", name="Login").click()
            tab.wait_for_timeout(500)
            expect(tab.get_by_label("Model", exact=True)).to_have_count(shown)
        assert refused == []
        tab.close()
