"""A live server for tests: tiny or pocket models, loopback, a free port, ended by leaving the `with`."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openai
from PIL import Image

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.methods import make_pruner
from adaptprune.serve.app import Settings, create_app
from adaptprune.serve.server import Server


class Live:
    """A running server.

    Attributes
    ----------
    url : str
    server : Server
    engines : dict of str to Engine
    """

    def __init__(self, server: Server, engines: dict[str, Engine]) -> None:
        self.server, self.engines, self.url = server, engines, server.url

    def client(self, **options: object) -> openai.OpenAI:
        """The official client, without its own retries."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "unused", "max_retries": 0, "timeout": 60, **options}
        )

    def settle(self, seconds: float = 10) -> None:
        """Wait until no engine has anything to do."""
        until = time.monotonic() + seconds
        while any(engine.pending or engine.running for engine in self.engines.values()):
            assert time.monotonic() < until, "the engines still have requests"
            time.sleep(0.01)


@contextmanager
def live(*engines: Engine, settings: Settings | None = None, drain: float = 5, **options: object) -> Iterator[Live]:
    """Serve engines that were not started."""
    named = {engine.name: engine for engine in engines}
    for engine in engines:
        engine.start()
    server = Server(create_app(named, settings), port=0, drain=drain, log_level="error", **options)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield Live(server, named)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
        assert not any(engine.alive for engine in engines)


def picture(seed: int, width: int = 90, height: int = 90) -> Image.Image:
    """Noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    """An image as clients send it."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def user(text: str, *urls: str) -> list[dict]:
    """The messages of a first turn: images, then text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def pocket_engine() -> Engine:
    """The pocket model, pruned to a quarter where a request does not say."""
    return Engine("pocket", *adaptprune.load(), pruner=make_pruner("adaptprune:keep_ratio=0.25"))


def tiny(checkpoint, name="tiny", **limits) -> Engine:
    """An engine whose answers run to their full length."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    return Engine(name, model, processor, EngineLimits(**limits), make_pruner("adaptprune:keep_ratio=0.25"))
