"""Images by address: which hosts and addresses are asked, redirects, limits, and names that change their address."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from adaptprune.serve import pictures
from adaptprune.serve.errors import ServeError
from adaptprune.serve.pictures import ImageLimits
from tests.serving import data_url, picture

ADDRESSES = {
    "8.8.8.8": True, "2001:4860:4860::8888": True,
    "127.0.0.1": False, "127.1.2.3": False, "0.0.0.0": False, "10.0.0.1": False, "172.16.0.1": False,
    "192.168.1.1": False, "169.254.169.254": False, "100.64.0.1": False, "224.0.0.1": False, "255.255.255.255": False,
    "192.0.2.1": False, "::": False, "::1": False, "fe80::1": False, "fe80::1%eth0": False, "fc00::1": False,
    "ff02::1": False,
    "::ffff:127.0.0.1": False, "::ffff:10.0.0.1": False, "64:ff9b::7f00:1": False, "2002:7f00:1::": False,
    "64:ff9b::a9fe:a9fe": False, "2001:0:4136:e378:8000:63bf:3fff:fdd2": False, "x": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("address", list(ADDRESSES))
def test_public_addresses(address):
    assert pictures.is_public(address) == ADDRESSES[address]


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("example.com", 443, True),
        ("EXAMPLE.com.", 443, True),
        ("example.com", 8443, False),
        ("img.example.com", 443, False),
        ("a.cdn.net", 443, True),
        ("cdn.net", 443, False),
        ("evilcdn.net", 443, False),
        ("odd.org", 8443, True),
        ("odd.org", 443, False),
    ],
)
def test_allowed_hosts(host, port, expected):
    hosts = ("example.com", "*.cdn.net", "odd.org:8443")
    assert pictures.allowed(host, port, 443, hosts) == expected
    assert pictures.allowed(host, 443, 443, ("*",))
    assert not pictures.allowed(host, port, 443, ())


@pytest.fixture
def web(monkeypatch):
    """A web server on loopback that names resolve to as if it were a public one; what it was asked for."""
    seen: list[tuple[str, str]] = []
    body = base64.b64decode(data_url(picture(3)).partition(",")[2])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.headers["Host"], self.path))
            kind = self.path.strip("/").partition("?")[0]
            if kind.startswith("redirect"):
                self.send_response(302)
                target = {"redirect-self": "/redirect-self", "redirect-private": "http://10.0.0.1/a.png",
                          "redirect-file": "file:///etc/passwd", "redirect-ok": "/ok.png",
                          "redirect-other": f"http://other.test:{self.server.server_port}/ok.png"}[kind]  # fmt: skip
                self.send_header("Location", target)
                self.end_headers()
                return
            self.send_response(404 if kind == "missing" else 200)
            self.end_headers()
            try:
                if kind == "endless":
                    while True:
                        self.wfile.write(bytes(65536))
                elif kind == "slow":
                    for _ in range(100):
                        self.wfile.write(b"a")
                        time.sleep(0.05)
                else:
                    self.wfile.write(body)
            except OSError:
                pass

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    async def resolve(self, host, port, **kwargs):
        address = {"public.test": "127.0.0.1", "other.test": "127.0.0.1", "rebound.test": "10.0.0.1"}.get(host, host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    monkeypatch.setattr(pictures, "is_public", lambda address: address == "127.0.0.1")
    yield server.server_port, seen
    server.shutdown()
    server.server_close()


FETCHES = {
    "ok.png?size=1": None,
    "redirect-ok": None,
    "redirect-self": "redirects more than 3 times",
    "redirect-private": "images from '10.0.0.1' are not fetched",
    "redirect-file": "has to begin with http",
    "redirect-other": "images from 'other.test' are not fetched",
    "missing": "answered 404",
    "endless": "more than the 200,000 bytes",
    "slow": "not delivered within 0.5 seconds",
}


@pytest.mark.parametrize("path", list(FETCHES))
def test_fetching_images(web, path):
    port, seen = web
    limits = ImageLimits(max_bytes=200_000, hosts=(f"public.test:{port}",), timeout=0.5 if path == "slow" else 5)
    url = f"http://public.test:{port}/{path}"
    if FETCHES[path] is None:
        data = asyncio.run(pictures.read(url, limits, "p"))
        assert pictures.decode([(data, "p")], limits)[0].size == (90, 90)
        assert seen[0] == (f"public.test:{port}", f"/{path}")
        return
    with pytest.raises(ServeError, match=FETCHES[path]) as error:
        asyncio.run(pictures.read(url, limits, "p"))
    assert error.value.status == 400


def test_names_of_private_addresses_are_refused_before_connecting(web):
    port, seen = web
    limits = ImageLimits(hosts=("*", f"rebound.test:{port}", f"10.0.0.1:{port}"))
    for url in (
        f"http://rebound.test:{port}/ok.png",
        f"http://10.0.0.1:{port}/",
        "http://user:pw@public.test/",
        "http://[::1",
    ):
        with pytest.raises(ServeError) as error:
            asyncio.run(pictures.read(url, limits, "p"))
        assert error.value.code == "bad_image"
    assert seen == []


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that resolves differently the second time is never asked twice; TLS still verifies the name."""
    asked = []

    async def resolve(self, host, port, **kwargs):
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    built = []

    async def run() -> None:
        async with httpx.AsyncClient() as client:
            limits = ImageLimits(hosts=("*",))
            built.append(await pictures._request(client, "https://rebind.test/a.png?b=1", limits, "p"))

    asyncio.run(run())
    (request,) = built
    assert asked == ["rebind.test"]
    assert str(request.url) == "https://93.184.216.34/a.png?b=1"
    assert request.headers["host"] == "rebind.test"
    assert request.extensions["sni_hostname"] == "rebind.test"
