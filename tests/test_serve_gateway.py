"""Several workers behind the gateway: they come, leave and die, and no request is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.errors import AdaptPruneError
from tests.serving import data_url, live, picture, user

LONG = {"ignore_eos": True, "pruning": {"method": "random", "keep_ratio": 0.25}}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def command(*words: str, **environment: str) -> Iterator[subprocess.Popen]:
    """`adaptprune ...` as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptprune", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    process.lines = lines  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(5)
        process.stderr.close()


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(checkpoint):
    """A gateway, two workers with the same model that registered themselves, and another engine beside them."""
    pytest.importorskip("smg", reason="smg is not installed (extra gateway)")
    model, processor = adaptprune.load(checkpoint)
    gateway_port, ports = free_port(), [free_port(), free_port()]
    url = f"http://127.0.0.1:{gateway_port}"
    with live(Engine("org/their-name", model, processor)) as other:
        gateway = [
            "--port",
            str(gateway_port),
            "--metrics-port",
            str(free_port()),
            "--upstream",
            f"other={other.url}/v1",
        ]
        worker = ["--model", f"tiny={checkpoint}", "--method", "none", "--register", url, "--log-level", "warning"]
        with ExitStack() as stack:
            process = stack.enter_context(command("gateway", *gateway))
            workers = {
                f"http://127.0.0.1:{port}": stack.enter_context(command("serve", *worker, "--port", str(port)))
                for port in ports
            }
            until(lambda: listed(url) >= {*workers, other.url})
            yield url, workers, process, other


def listed(url: str) -> set[str]:
    """Addresses of the workers that the gateway sends requests to."""
    try:
        workers = httpx.get(f"{url}/workers").json()["workers"]
    except httpx.HTTPError:
        return set()
    return {worker["url"] for worker in workers if worker["is_healthy"]}


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)


def test_models_of_all_workers_are_found_under_one_address(fleet):
    url, _, _, _ = fleet
    assert {model.id for model in client(url).models.list()} >= {"tiny", "org/their-name"}
    answer = client(url).chat.completions.create(
        model="tiny", messages=user("a", data_url(picture(0))), max_tokens=3, extra_body=LONG
    )
    assert answer.usage.pruning["visual_tokens_kept"] == 9  # our own parameters pass through, and so does their answer
    for name in ("other", "org/their-name"):
        answer = client(url).chat.completions.create(model=name, messages=user("a"), max_tokens=3)
        assert answer.model == "org/their-name"
    with pytest.raises(openai.NotFoundError):
        client(url).chat.completions.create(model="nothing", messages=user("a"))
    with pytest.raises(openai.BadRequestError, match="keep_ratio=7 is not allowed"):
        client(url).chat.completions.create(model="tiny", messages=user("a"), extra_body={"pruning": {"keep_ratio": 7}})


def test_killing_one_of_two_workers(fleet):
    """Unary requests on it are answered by the other; its streams end in an error, after which asking again works."""
    url, workers, _, _ = fleet
    expected = client(url).chat.completions.create(model="tiny", messages=user("a"), max_tokens=150, extra_body=LONG)
    unary: list = []
    streams: list = []

    def ask() -> None:
        unary.append(
            client(url).chat.completions.create(model="tiny", messages=user("a"), max_tokens=150, extra_body=LONG)
        )

    def read() -> None:
        text, finish = "", None
        try:
            chunks = client(url).chat.completions.create(
                model="tiny", messages=user("a"), max_tokens=400, extra_body=LONG, stream=True
            )
            for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
            streams.append((text, finish, None))
        except Exception as error:
            streams.append((text, finish, error))

    threads = [threading.Thread(target=target) for target in [ask, read] * 6]
    for thread in threads:
        thread.start()
    busy = "adaptprune_running_rows"

    def rows(worker: str) -> float:
        lines = httpx.get(f"{worker}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(busy))

    until(lambda: all(rows(worker) >= 2 for worker in workers))
    victim, process = next(iter(workers.items()))
    process.kill()
    for thread in threads:
        thread.join()
    assert [answer.choices for answer in unary] == [expected.choices] * 6
    cut = [error for _, _, error in streams if error is not None]
    assert 0 < len(cut) < 6
    for text, finish, error in streams:
        # never a shortened answer that looks complete
        assert (error is None) == (finish == "length"), (text, finish, error)
        assert error is None or isinstance(error, (openai.APIError, httpx.HTTPError)), repr(error)
    again = client(url).chat.completions.create(model="tiny", messages=user("a"), max_tokens=150, extra_body=LONG)
    assert again.choices == expected.choices
    until(lambda: victim not in listed(url))


def test_a_worker_that_is_told_to_stop_leaves_the_gateway(fleet):
    url, workers, process, _ = fleet
    (name, worker), *_ = [(name, worker) for name, worker in workers.items() if worker.poll() is None]
    worker.send_signal(signal.SIGTERM)
    until(lambda: name not in listed(url), 10)
    worker.wait(20)
    assert not any("Traceback" in line for line in worker.lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert any("gateway at" in line for line in process.lines)


MISTAKES = {
    "--worker 'localhost:1' is not allowed": {"workers": ["localhost:1"]},
    "--upstream 'http://a' is not allowed: write NAME=URL": {"upstreams": ["http://a"]},
    "--upstream a=http://127.0.0.1:9 does not list its models": {"upstreams": ["a=http://127.0.0.1:9"]},
    "--policy 'best' is not allowed": {"policy": "best"},
    "lets others on the network use the model without a key": {"host": "0.0.0.0"},
}


@pytest.mark.parametrize("message", list(MISTAKES))
def test_mistakes_on_the_command_line(message):
    from adaptprune.serve.gateway import Gateway

    with pytest.raises(AdaptPruneError) as error:
        Gateway(**{"workers": [], **MISTAKES[message]})
    assert message in str(error.value)
