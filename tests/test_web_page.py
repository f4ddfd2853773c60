"""The web page in a real browser: headless Chromium, driven through Playwright, over the pocket model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.methods import make_pruner
from adaptprune.web.launch import page, serving
from adaptprune.web.log import FILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (Debian: apt-get install chromium)", allow_module_level=True)

EXAMPLES = Path(adaptprune.__file__).parent / "assets" / "examples"
#: Set to a folder to have pictures of the page written into it (docs/images holds some).
SHOTS = os.environ.get("ADAPTPRUNE_SCREENSHOTS")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
TIMEOUT = 60_000  # milliseconds; machines of continuous integration are slow


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
    with sync_playwright() as playwright:
        # a container's root may not make the sandbox; the page is our own. The webcam is Chromium's test picture.
        arguments = [
            "--no-sandbox",
            "--disable-gpu",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
        ]
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield one
        one.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page; afterwards nothing was asked of another host, and no script failed."""
    opened, problems = [], []

    def open_page(**options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        tab = context.new_page()
        tab.set_default_timeout(TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: _check(request.url, url, problems))
        tab.goto(url)
        expect(tab.get_by_role("button", name="Regenerate")).to_be_visible()
        expect(tab.get_by_label("Model", exact=True)).to_have_value("pocket")  # the list came from the server
        opened.append(context)
        return tab

    yield open_page
    for context in opened:
        context.close()
    assert problems == []


def _check(address: str, url: str, problems: list[str]) -> None:
    if not address.startswith((url, "data:", "blob:")):
        problems.append(f"the page asked for {address}")


def add(tab: Page, box: str, name: str) -> None:
    tab.set_input_files(f"{box} input[type=file]", str(EXAMPLES / f"{name}.png"))
    expect(tab.locator(f"{box} img")).to_have_count(1)


def ask(tab: Page, question: str, box: str = "#question") -> None:
    tab.fill(f"{box} textarea", question)
    tab.press(f"{box} textarea", "Enter")


def answers(tab: Page):
    return tab.locator("#chat .bot.message, #chat .message.bot")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def shot(tab: Page, name: str) -> None:
    if SHOTS:
        tab.wait_for_timeout(1500)  # pictures fade in
        tab.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def converse(tab: Page) -> None:
    """Two questions about one picture, answered, with an overlay each."""
    add(tab, "#question", "cloth")
    ask(tab, "What colour is the triangle?")
    expect(answers(tab).last).to_have_text("orange")
    expect(tab.locator("#status")).to_contain_text("144 of 576 visual tokens kept · first token")
    expect(tab.locator("#overlays img").first).to_be_visible()
    ask(tab, "What shape is the pink object?")
    expect(answers(tab).last).to_have_text("heart")
    expect(tab.locator("#overlays")).to_contain_text("2. 144 of 576: What shape is the pink object?")


def is_dark(tab: Page) -> bool:
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) < 200


def test_upload_ask_overlay_and_vote(visit, folder):
    tab = visit()
    converse(tab)
    size = tab.locator("#overlays img").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [672, 672]
    tab.get_by_role("button", name="Good").click()
    expect(tab.locator("#status")).to_have_text("Thank you, noted.")
    shot(tab, "web-desktop")
    vote = lines(folder)[-1]
    assert (vote["event"], vote["question"], vote["answer"]) == ("upvote", "What shape is the pink object?", "heart")
    tab.get_by_role("button", name="Regenerate").click()
    expect(tab.locator("#status")).to_contain_text("144 of 576")
    expect(answers(tab)).to_have_count(2)
    tab.get_by_role("button", name="Clear").first.click()
    expect(answers(tab)).to_have_count(0)


def test_compare(visit, folder):
    tab = visit(color_scheme="dark")
    assert is_dark(tab)
    tab.get_by_role("tab", name="Compare").click()
    expect(tab.get_by_label("Right: Model")).to_have_value("endless")  # another model, if there is one
    tab.get_by_label("Right: Model").click()
    tab.get_by_role("option", name="pocket").click()
    add(tab, "#compare-question", "slate")
    ask(tab, "What shape is the pink object?", "#compare-question")
    for side, kept in (("left", 57), ("right", 576)):
        expect(tab.locator(f"#{side}-answer")).to_contain_text("cross")
        expect(tab.locator(f"#{side}-cost")).to_contain_text(f"{kept} of 576 visual tokens kept · first token")
        expect(tab.locator(f"#{side}-overlay img")).to_be_visible()
    tab.get_by_role("button", name="Left is better").click()
    expect(tab.locator("#judged")).to_have_text("Thank you, noted.")
    shot(tab, "web-compare-dark")
    choice = lines(folder)[-1]
    assert (choice["event"], choice["choice"]) == ("prefer", "left")
    assert choice["left"]["cost"]["visual_tokens_kept"] == 57


def test_stop_and_what_goes_wrong(visit):
    tab = visit()
    ask(tab, "   ")
    banner = tab.locator("#banner [role=alert]")
    expect(banner).to_have_text("write a question first.")
    tab.get_by_label("Model", exact=True).click()
    tab.get_by_role("option", name="endless").click()
    add(tab, "#question", "wood")
    ask(tab, "Is there a cyan circle?")
    expect(banner).to_have_count(0)
    expect(answers(tab).last).to_contain_text("yes")
    tab.get_by_role("button", name="Stop").first.click()
    expect(tab.locator("#status")).to_contain_text("stopped")
    # a mistake is told in the server's words, and what was typed comes back
    method = tab.get_by_label("Method", exact=False).first
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
    for name in ("Regenerate", "Clear", "Good"):
        box = tab.get_by_role("button", name=name).first.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    shot(tab, "web-phone")


def test_keyboard_alone(visit):
    """An example is chosen, sent and judged without a mouse; every control can be reached by Tab."""
    tab = visit()
    reached: set[str] = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || "
                "document.activeElement.tagName).trim()"
            )
        )
    for name in ("Regenerate", "Clear", "Good", "Bad", "Flag", "Refresh models", "Webcam", "Sampling"):
        assert any(name in one for one in reached), (name, reached)
    example = tab.get_by_role("button", name="What colour is the triangle?").or_(
        tab.locator("button", has_text="What colour is the triangle?")
    )
    example.first.focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#question textarea")).to_have_value("What colour is the triangle?")
    tab.locator("#question textarea").focus()
    tab.keyboard.press("Enter")
    expect(answers(tab).last).to_have_text("orange")
    outline = tab.evaluate(
        "() => { const b = [...document.querySelectorAll('button')].find(x => x.innerText.includes('Regenerate'));"
        "b.focus(); return getComputedStyle(b).outlineStyle }"
    )
    assert outline == "solid"


def test_paste_an_image(visit):
    tab = visit()
    tab.locator("#question textarea").focus()
    data = list((EXAMPLES / "cloth.png").read_bytes())
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
