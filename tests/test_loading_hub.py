"""Names on the hub: what it has not, does not give, or cannot be asked for is said in seconds, for what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adaptprune import AdaptPruneError
from adaptprune.models import hub
from adaptprune.models.loading import load

#: Name of a repository: status and headers of every answer about it.
ANSWERS = {
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."}),
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/gated is restricted."}),
    "old": (404, {"X-Error-Code": "RevisionNotFound"}),
    "bare": (404, {"X-Error-Code": "EntryNotFound"}),
    "forbidden": (403, {}),
    "broken": (500, {}),
    "busy": (429, {}),
    "silent": (0, {}),
}
SAID = {
    "missing": "it is neither a folder here nor a model on the hub http://127.0.0.1",
    "private": "A private one needs a token: `hf auth login`.",
    "gated": "its owner gives it to those who ask: accept the terms",
    "old": "it has no revision 'main' on the hub",
    "bare": "neither config.json nor adapter_config.json is in it",
    "forbidden": "refuses it to us (403)",
    "broken": "answered 500: it has troubles of its own, try again later",
    "busy": "answered 429: it has troubles of its own, try again later",
    "silent": "it is no folder here, and the model hub http://127.0.0.1",
}

ASK = """
import json, sys, time
import adaptprune
import adaptprune.models
found = {}
for name, options in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        adaptprune.load(name, **options)
        said = "loaded"
    except adaptprune.AdaptPruneError as error:
        said = str(error)
    found[f"{name} {len(options)}"] = said, time.perf_counter() - start
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def endpoint():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            kind = next(name for name in ANSWERS if f"/{name}/" in self.path)
            status, headers = ANSWERS[kind]
            if not status:
                time.sleep(20)
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(endpoint: str, asked: list, tmp_path) -> dict[str, tuple[str, float]]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_answer_of_the_hub_is_told_for_what_it_is(endpoint, tmp_path):
    """Also with a base: that is not what is wrong with it."""
    asked = [[f"org/{name}", options] for name in ANSWERS for options in ({}, {"model_base": "org/base"})]
    found = ask(endpoint, asked, tmp_path)
    for name, said in SAID.items():
        for message, seconds in (found[f"org/{name} 0"], found[f"org/{name} 1"]):
            assert message.startswith(f"cannot use 'org/{name}': ")
            assert said in message
            assert "model_base" not in message
            assert "\n" not in message
            assert seconds < (8 if name == "silent" else 3), (name, seconds)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_no_network_is_called_no_network_at_once(endpoint, tmp_path):
    found = ask(endpoint, [["org/name", {}], ["org/name", {"model_base": "org/base"}]], tmp_path)
    for message, seconds in found.values():
        assert f"it is no folder here, and the model hub {endpoint} cannot be reached (" in message
        assert "there is no network" in message
        assert "Give the folder of a copy" in message
        assert "HF_HUB_OFFLINE=1" in message
        assert "model_base" not in message
        assert seconds < 8


def test_without_a_network_the_cache_is_read_at_once(tmp_path, monkeypatch, caplog):
    """Instead of asking for every file and waiting for each."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def unreachable(name, where):
        raise hub._Unreachable("http://hub cannot be reached (no route)")

    monkeypatch.setattr(hub, "_ask", unreachable)
    assert hub.reach("org/name", {"cache_dir": str(tmp_path)})["local_files_only"] is True
    assert "'org/name' is read from the cache" in caplog.text
    with pytest.raises(AdaptPruneError, match="the model hub http://hub cannot be reached"):
        hub.reach("org/other", {"cache_dir": str(tmp_path)})


def test_a_look_up_that_never_ends_is_left_behind(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "WHOLE", 0.2)
    monkeypatch.setattr(hub, "_ask", lambda name, where: time.sleep(5))
    start = time.perf_counter()
    with pytest.raises(AdaptPruneError, match="did not answer within 0.2 seconds"):
        hub.reach("org/name", {})
    assert time.perf_counter() - start < 2


def test_a_connection_that_breaks_in_the_middle(monkeypatch):
    class ReadError(Exception):
        __module__ = "httpx2"

    def breaks(self, filename):
        raise ReadError("Connection reset by peer")

    monkeypatch.setattr("adaptprune.models.checkpoint.Checkpoint.json", breaks)
    with pytest.raises(
        AdaptPruneError, match="cannot load 'org/name': fetching it broke off .Connection reset by peer"
    ):
        load("org/name")
