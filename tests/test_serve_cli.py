"""`adaptprune serve` and `adaptprune gateway` as a user meets them; mistakes end before anything is loaded."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from adaptprune.cli import main
from adaptprune.errors import AdaptPruneError
from adaptprune.serve import server

MISTAKES = {
    "--port 99999 is not allowed: use 0 to 65535": ["serve", "--port", "99999"],
    "--max-batch 0 is not allowed": ["serve", "--max-batch", "0"],
    "--timeout -1.0 is not allowed": ["serve", "--timeout", "-1"],
    "--timeout nan is not allowed": ["serve", "--timeout", "nan"],
    "lets others on the network use the model without a key: set --api-key": ["serve", "--host", "0.0.0.0"],
    "an API key has to be 8 or more": ["serve", "--api-key", "short"],
    "two models are called 'pocket'": ["serve", "--model", "pocket", "pocket"],
    "--model '=x' is not allowed": ["serve", "--model", "=x"],
    "unknown method 'fastvee'": ["serve", "--method", "fastvee"],
    "layer=50 is outside the model": ["serve", "--method", "fastv:layer=50"],
    "--register 'here' is not allowed": ["serve", "--register", "here"],
    "--advertise says under which address": ["serve", "--advertise", "http://a"],
    "is no address that a gateway can reach": [
        "serve",
        "--host",
        "0.0.0.0",
        "--allow-anonymous",
        "--register",
        "http://a",
    ],
    "cannot use '/nowhere'": ["serve", "--model", "a=/nowhere"],
    "--hang-after 0.0 is not allowed": ["serve", "--hang-after", "0"],
    "--log-level 'loud' is not allowed": ["serve", "--log-level", "loud"],
    "--allow-image-hosts 'http://a.b' is not allowed": ["serve", "--allow-image-hosts", "http://a.b"],
    "--upstream 'x' is not allowed": ["gateway", "--upstream", "x"],
    "--port 0 is not allowed": ["gateway", "--port", "0"],
}


@pytest.mark.parametrize("message", list(MISTAKES))
def test_mistakes(message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaptprune", *MISTAKES[message]])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch, capsys):
    from adaptprune.cli.serve import needs_extra

    needs_extra("serve", "fastapi")
    with pytest.raises(AdaptPruneError, match=r"needs no_such_module, .* pip install 'adaptprune\[serve\]'"):
        needs_extra("serve", "fastapi", "no_such_module")


def test_who_may_ask():
    assert server.check_access("127.0.0.1", [], False) == ("localhost", "127.0.0.1", "[::1]", "127.0.0.1")
    assert "[::1]" in (server.check_access("::1", [], False) or ())
    assert server.check_access("127.0.0.1", ["long enough".replace(" ", "-")], False) is None
    assert server.check_access("0.0.0.0", [], True) is None
    for host in ("0.0.0.0", "::", "192.168.0.2", "example.com"):
        with pytest.raises(AdaptPruneError):
            server.check_access(host, [], False)


def test_the_access_log_leaves_out_what_machines_ask():
    def shown(path: str, status: int) -> bool:
        record = logging.LogRecord("uvicorn.access", 20, "", 0, "", ("127.0.0.1:1", "GET", path, "1.1", status), None)
        return server._QUIET.filter(record)

    assert not shown("/health", 200)
    assert shown("/health", 503)
    assert shown("/v1/models", 200)


def test_threads_wait_asleep_unless_the_user_says_otherwise():
    """OpenMP reads the policy as it is loaded, so nothing on the way to it may import torch."""
    code = (
        "import os, sys; from adaptprune.cli import serve; assert 'torch' not in sys.modules; serve.wait_passively(); "
        "import torch; print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert found.stdout.strip() == expected, found.stderr


def test_serving_sets_it_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(sys, "argv", ["adaptprune", "serve", "--model", "a=/nowhere"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
