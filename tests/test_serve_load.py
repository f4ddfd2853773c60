"""Many clients at once, and many requests in a row."""

from __future__ import annotations

import gc
import random
import threading

import httpx
import openai
import psutil

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.images import open_image
from adaptprune.methods import make_pruner
from tests.serving import data_url, live, picture, user

QUESTIONS = ["What colour is the triangle?", "Is there a cyan circle?", "What shape is the pink object?"]
PRUNINGS = [
    {"method": "adaptprune", "keep_ratio": 0.1},
    {"method": "adaptprune", "keep_ratio": 0.5, "layer": 3},
    {"method": "fastv", "keep_ratio": 0.25},
    {"method": "random", "keep_ratio": 0.05, "layer": 1},
    {"method": "none"},
]


def test_64_clients_with_mixed_ratios_sizes_and_cancellations():
    """No answer is lost or mixed up: each is the one that the same request gets alone."""
    rng = random.Random(0)
    pictures = [open_image(f"example:{name}") for name in ("cloth", "slate", "wood")]
    pictures += [pictures[0].resize((500, 200)), pictures[1].resize((64, 90))]
    urls = [data_url(one, kind) for one, kind in zip(pictures, ["PNG", "JPEG", "PNG", "PNG", "PNG"], strict=True)]
    kinds = []
    for index in range(12):
        images = [] if index == 11 else rng.sample(urls, 1 + (index % 7 == 0))
        kinds.append(
            {
                "model": "pocket",
                "messages": user(rng.choice(QUESTIONS), *images),
                "max_tokens": rng.choice([2, 6, 12]),
                "extra_body": {"pruning": rng.choice(PRUNINGS), "ignore_eos": True},
            }
        )
    found: list = [None] * 64
    with live(Engine("pocket", *adaptprune.load(), EngineLimits(max_batch=24))) as server:
        client = server.client(timeout=120)
        alone = [client.chat.completions.create(**kind) for kind in kinds]
        assert len({answer.choices[0].message.content for answer in alone}) > 5
        engine = server.engines["pocket"]
        before = engine.counters.steps, engine.counters.step_rows

        def work(index: int) -> None:
            kind = kinds[index % len(kinds)]
            if index % 2:
                answer = client.chat.completions.create(**kind)
                found[index] = answer.choices[0].message.content, answer.usage.pruning
                return
            stream = client.chat.completions.create(**kind, stream=True, stream_options={"include_usage": True})
            text, usage = "", None
            for count, chunk in enumerate(stream):
                if index % 6 == 0 and count == 1:
                    stream.close()
                    return
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                usage = chunk.usage or usage
            found[index] = text, usage.pruning

        threads = [threading.Thread(target=work, args=(index,)) for index in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.settle()
        steps, rows = engine.counters.steps - before[0], engine.counters.step_rows - before[1]
    for index, answer in enumerate(found):
        expected = alone[index % len(kinds)]
        if index % 6 == 0:
            assert answer is None
            continue
        assert answer[0] == expected.choices[0].message.content, kinds[index % len(kinds)]["extra_body"]
        if answer[1] is not None:
            assert answer[1]["images"] == expected.usage.pruning["images"]
    assert rows > 3 * steps, "the clients were not answered together"


def test_memory_stays_flat(checkpoint):
    """A small version of benchmarks/serve.py --memory."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    process, rng = psutil.Process(), random.Random(0)
    urls = [data_url(picture(seed)) for seed in range(4)]
    with live(Engine("tiny", model, processor, pruner=make_pruner("adaptprune:keep_ratio=0.25"))) as server:
        http = httpx.Client(timeout=30)

        def ask(count: int) -> None:
            def work(seed: int) -> None:
                body = {
                    "model": "tiny",
                    "messages": user("a b c", *rng.sample(urls, seed % 4)),
                    "max_tokens": 1 + seed % 5,
                }
                assert http.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200

            for start in range(0, count, 8):
                threads = [threading.Thread(target=work, args=(start + i,)) for i in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            server.settle()
            gc.collect()

        ask(64)
        before = process.memory_info().rss
        ask(120)
        growth = process.memory_info().rss - before
    # one leaked prompt of 110 tokens and its images would be 0.3 MB: 120 of them 36 MB
    assert growth < 12 * 2**20, f"{growth / 2**20:.1f} MB more after 120 requests"


def test_a_storm_of_clients_that_leave(checkpoint):
    """Clients that leave at any moment take nothing with them and leave nothing behind."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    rng = random.Random(0)
    with live(Engine("tiny", model, processor, EngineLimits(max_batch=4, max_queue=40))) as server:
        url = data_url(picture(0))
        expected = server.client().chat.completions.create(model="tiny", messages=user("a", url), max_tokens=20)

        def leave(wait: float) -> None:
            try:
                client = server.client(timeout=wait)
                for _ in client.chat.completions.create(
                    model="tiny", messages=user("a", url), max_tokens=300, stream=True
                ):
                    pass
            except openai.APIError:
                pass

        threads = [threading.Thread(target=leave, args=(rng.random() / 5,)) for _ in range(24)]
        for thread in threads:
            thread.start()
        answer = server.client().chat.completions.create(model="tiny", messages=user("a", url), max_tokens=20)
        for thread in threads:
            thread.join()
        assert answer.choices == expected.choices
        server.settle()
        assert server.engines["tiny"].cache_bytes == 0
