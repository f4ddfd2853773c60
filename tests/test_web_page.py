"""The web page in a real browser: headless Chromium, driven through Playwright, over the pocket model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.methods import make_pruner
from adaptprune.models.loading import TOY
from adaptprune.web.launch import page, serving
from tests.webpage import CLOTH, PHONE, Visits, add, answers, ask, chromium, lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    """A page over the pocket model, and a second model that never ends an answer."""
    endless = adaptprune.load()
    endless[0].generation_config.eos_token_id = None
    engines = {
        "pocket": Engine("pocket", *adaptprune.load(), pruner=make_pruner("adaptprune")),
        "endless": Engine("endless", *endless, limits=EngineLimits(max_tokens=2048)),
    }
    with serving(engines) as client, page(client, folder, port=0, hosts=("127.0.0.1", "localhost")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def visit(browser, url):
    """Opens the page; afterwards nothing was asked of another host, and no script failed."""
    visits = Visits(browser, url)

    def open_page(**options) -> Page:
        tab = visits.open(**options)
        expect(tab.get_by_label("Model", exact=True)).to_have_value("pocket", timeout=1000)  # there from the start
        return tab

    yield open_page
    assert visits.close() == []


def converse(tab: Page) -> None:
    """Two questions about one picture, answered, with an overlay each."""
    add(tab, "cloth")
    ask(tab, "What colour is the triangle?")
    expect(answers(tab)).to_have_text(["orange"])
    for number in ("144 of 576", "75 %"):
        expect(tab.locator("#chat .ap-numbers dd", has_text=number)).to_have_count(1)
    expect(tab.locator("#chat .ap-kept .ap-open img")).to_have_count(1)
    ask(tab, "What shape is the pink object?")
    expect(answers(tab)).to_have_text(["orange", "heart"])
    expect(tab.locator("#chat .ap-numbers")).to_have_count(2)


def is_dark(tab: Page) -> bool:
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) < 200


def test_upload_ask_overlay_and_vote(visit, folder):
    tab = visit()
    expect(tab.get_by_role("button", name="Good")).to_have_count(0)  # nothing to judge yet
    expect(tab.get_by_role("button", name="Clear")).to_be_disabled()
    converse(tab)
    expect(tab.get_by_role("button", name="Good")).to_have_count(1)  # the last answer's
    image = tab.locator("#chat .ap-kept .ap-open img").last
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [672, 672]
    assert tab.locator("#chat .ap-question img").first.evaluate("image => image.naturalWidth") == 240
    tab.get_by_role("button", name="Good").click()
    expect(tab.locator("#status")).to_have_text("Thank you, noted.")
    expect(tab.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "true")
    written = lines(folder)
    for name in ("Good", "Bad", "Flag"):  # once is once
        tab.get_by_role("button", name=name).click(force=True)
    tab.wait_for_timeout(500)
    assert lines(folder) == written
    vote = written[-1]
    assert (vote["event"], vote["question"], vote["answer"]) == ("upvote", "What shape is the pink object?", "heart")
    tab.get_by_role("button", name="Ask again").click()
    expect(tab.get_by_role("button", name="Good")).to_have_attribute("aria-pressed", "false")  # a new answer
    expect(answers(tab)).to_have_count(2)
    tab.get_by_role("button", name="Clear").first.click()
    expect(answers(tab)).to_have_count(0)
    expect(tab.locator("#chat [data-act=example-0]")).to_be_visible()


def test_the_first_sight(visit, url):
    """What it does, what the model is, and an answer one click away; no empty boxes."""
    tab = visit()
    assert '"pocket"' in urlopen(url, timeout=30).read().decode()  # the models are there from the start
    expect(tab.locator("#head")).to_contain_text("Ask about a picture")
    expect(tab.locator("#notice")).to_contain_text(TOY)
    expect(tab.locator("#head")).to_contain_text("are recorded on this server")
    assert tab.locator("#status, #judged, #banner").filter(visible=True).count() == 0
    tab.get_by_role("button", name="What colour is the triangle?").click()
    expect(answers(tab)).to_have_text(["orange"])
    expect(tab.locator("#chat .ap-question img")).to_be_visible()


def test_an_overlay_opens_in_full_size(visit):
    tab = visit()
    tab.get_by_role("button", name="What colour is the triangle?").click()
    expect(answers(tab)).to_have_text(["orange"])
    tab.locator("#chat .ap-open").click()
    full = tab.locator("#chat .ap-full img")
    expect(full).to_be_visible()
    assert full.bounding_box()["width"] >= 600
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "kept.jpg"
    tab.get_by_role("button", name="Close").click()
    expect(full).to_be_hidden()


def test_compare(visit, folder):
    tab = visit(color_scheme="dark")
    assert is_dark(tab)
    tab.get_by_role("tab", name="Compare").click()
    expect(tab.get_by_label("Right: Model")).to_have_value("endless")  # another model, if there is one
    expect(tab.get_by_label("range slider for Right: Keep ratio")).to_be_disabled()  # "none" keeps all
    expect(tab.get_by_label("range slider for Left: Keep ratio")).to_be_enabled()
    tab.get_by_label("Right: Model").click()
    tab.get_by_role("option", name="pocket").click()
    add(tab, "slate", "#compare-question")
    tab.fill("#compare-question textarea", "What shape is the pink object?")
    tab.locator("#compare-question").get_by_role("button", name="Submit").click()
    for side, kept in (("left", 57), ("right", 576)):
        expect(tab.locator(f"#answers .ap-{side} .ap-answer")).to_have_text("cross")
        expect(tab.locator(f"#answers .ap-{side} dd").first).to_have_text(f"{kept} of 576")
        expect(tab.locator(f"#answers .ap-{side} .ap-open img")).to_be_visible()
    for part in (".ap-answer", ".ap-numbers", ".ap-open"):
        left, right = (tab.locator(f"#answers .ap-{side} {part}").bounding_box() for side in ("left", "right"))
        assert left["y"] == right["y"]
        assert left["width"] == right["width"]
    tab.get_by_role("button", name="Left is better").click()
    expect(tab.locator("#judged")).to_have_text("Thank you, noted.")
    choice = lines(folder)[-1]
    assert (choice["event"], choice["choice"]) == ("prefer", "left")
    assert choice["left"]["cost"]["visual_tokens_kept"] == 57
    written = lines(folder)
    tab.get_by_role("button", name="Tie").click(force=True)
    tab.wait_for_timeout(300)
    assert lines(folder) == written


def test_controls_that_do_nothing_are_off(visit):
    tab = visit()
    ratio = tab.get_by_label("range slider for Keep ratio", exact=True)
    method = tab.get_by_label("Method", exact=True)
    for spec, says in (("none", False), ("fastv:layer=3", True), ("fastv:keep_ratio=0.2", False), ("adaptprune", True),
                       ("default", False)):  # fmt: skip
        method.fill(spec)
        method.press("Enter")
        (expect(ratio).to_be_enabled if says else expect(ratio).to_be_disabled)()
    tab.get_by_role("button", name="Sampling").click()
    top_p = tab.get_by_label("range slider for Top p")
    expect(top_p).to_be_disabled()
    tab.get_by_label("number input for Temperature").fill("1")
    tab.get_by_label("number input for Temperature").press("Enter")
    expect(top_p).to_be_enabled()
    for name in ("Stop", "Clear"):
        expect(tab.get_by_role("button", name=name).first).to_be_disabled()
    expect(tab.get_by_label("number input for Max tokens")).to_have_attribute("max", str(EngineLimits().max_tokens))


def endless(tab: Page) -> None:
    """Begin an answer that does not end."""
    tab.get_by_label("Model", exact=True).click()
    tab.get_by_role("option", name="endless").click()
    add(tab, "wood")
    ask(tab, "Is there a cyan circle?")
    expect(answers(tab).last).to_contain_text("yes")


def test_clear_during_an_answer_clears(visit):
    tab = visit()
    endless(tab)
    tab.get_by_role("button", name="Clear").first.click()
    expect(answers(tab)).to_have_count(0)
    tab.wait_for_timeout(1500)  # nothing of it comes back
    expect(answers(tab)).to_have_count(0)
    expect(tab.get_by_role("button", name="Stop").first).to_be_disabled()
    tab.get_by_label("Model", exact=True).click()
    tab.get_by_role("option", name="pocket").click()
    tab.get_by_role("button", name="What colour is the triangle?").click()  # and the page goes on
    expect(answers(tab)).to_have_text(["orange"])


def test_a_question_during_an_answer_is_told_to_wait_and_stays_in_its_box(visit):
    tab = visit()
    endless(tab)
    ask(tab, "And a star?")
    expect(tab.locator("#banner [role=alert]")).to_contain_text("wait for its end, or stop it")
    expect(tab.locator("#question textarea")).to_have_value("And a star?")
    expect(answers(tab)).to_have_count(1)
    tab.get_by_role("button", name="Stop").first.click()
    expect(tab.locator("#chat .ap-remarks")).to_contain_text("stopped")


def test_stop_and_what_goes_wrong(visit):
    tab = visit()
    ask(tab, "   ")
    banner = tab.locator("#banner [role=alert]")
    expect(banner).to_have_text("write a question first.")
    endless(tab)
    expect(banner).to_have_count(0)
    tab.get_by_role("button", name="Stop").first.click()
    expect(tab.locator("#chat .ap-remarks")).to_contain_text("stopped")
    # a mistake is told in the server's words, and what was typed comes back
    method = tab.get_by_label("Method", exact=True)
    method.fill("fastv:layer=99")
    method.press("Enter")
    ask(tab, "And a star?")
    expect(banner).to_contain_text("layer=99 is outside the model")
    expect(tab.locator("#question textarea")).to_have_value("And a star?")
    expect(answers(tab)).to_have_count(1)


def test_a_phone(visit):
    tab = visit(**PHONE)
    converse(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390  # nothing to scroll sideways
    for name in ("Ask again", "Clear", "Good"):
        box = tab.get_by_role("button", name=name).first.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390


def test_keyboard_alone(visit):
    """An example is chosen, sent and judged without a mouse; every control can be reached by Tab."""
    tab = visit()
    reached: set[str] = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "[document.activeElement.getAttribute('aria-label'), document.activeElement.innerText].join(' ')"
            )
        )
    for name in ("Is there a cyan circle?", "Refresh models", "Webcam", "Sampling", "Model", "Method", "Send"):
        assert any(name in one for one in reached), (name, reached)
    tab.get_by_role("button", name="What colour is the triangle?").focus()
    tab.keyboard.press("Enter")
    expect(answers(tab)).to_have_text(["orange"])
    tab.get_by_role("button", name="Flag").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#status")).to_have_text("Thank you, noted.")
    assert tab.evaluate("document.activeElement.dataset.act") == "flag"  # the focus stays where it was
    outline = tab.evaluate(
        "() => { const b = [...document.querySelectorAll('button')].find(x => x.innerText.includes('Ask again'));"
        "b.focus(); return getComputedStyle(b).outlineStyle }"
    )
    assert outline == "solid"


def test_paste_an_image(visit):
    tab = visit()
    tab.locator("#question textarea").focus()
    data = list(Path(CLOTH).read_bytes())
    tab.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            document.querySelector("#question textarea").dispatchEvent(event);
        }""",
        data,
    )
    expect(tab.locator("#question img")).to_have_count(1)
    ask(tab, "What colour is the triangle?")
    expect(answers(tab).last).to_have_text("orange")


def test_webcam(visit):
    tab = visit(permissions=["camera"])
    tab.get_by_role("button", name="Webcam").click()
    tab.get_by_text("Click to Access Webcam").click()
    tab.wait_for_function("[...document.querySelectorAll('video')].some(video => video.videoWidth && !video.paused)")
    tab.get_by_role("button", name="capture photo").click()
    expect(tab.locator("#question img")).to_have_count(1)  # it goes with the next question
