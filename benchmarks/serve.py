"""Throughput and memory of the server: `python benchmarks/serve.py`, `python benchmarks/serve.py --memory 2000`.

A live server on loopback in this process, clients in threads of their own. The variants take turns in every round, so
that a machine that slows down slows all of them; medians are over the rounds. Prints a table, then one JSON line.

The decoder has random weights (`--decoder LAYERSxWIDTH`): speed does not depend on what they are. Every answer is
written to its full length.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import io
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import numpy as np
import psutil
import torch
import transformers
from PIL import Image

import adaptprune
from adaptprune.bench import SIDE, mlp_width, parse_size
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.serve.app import create_app
from adaptprune.serve.server import Server

VARIANTS = {"unpruned": {"method": "none"}, "adaptprune 0.1": {"method": "adaptprune", "keep_ratio": 0.1}}


def random_model(size: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A LLaVA with a decoder of that size, 576 visual tokens and the pocket model's processor."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    layers, width = parse_size(size)
    _, processor = adaptprune.load()
    heads = width // (128 if width >= 2048 else 64)
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=14 * SIDE,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=256, hidden_size=width, intermediate_size=mlp_width(width), num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048,
        ),
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    return model, processor


def data_url(seed: int) -> str:
    """A picture of noise as clients send it."""
    values = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).resize((336, 336)).save(buffer, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Clients:
    """Asks a server from several threads."""

    def __init__(self, url: str, pictures: int = 8) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._urls = [data_url(seed) for seed in range(pictures)]
        self._http = httpx.Client(timeout=600, limits=httpx.Limits(max_connections=64))

    def ask(self, seed: int, tokens: int, pruning: dict[str, Any], images: int = 1) -> dict[str, Any]:
        """One request; its usage."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": self._urls[(seed + i) % len(self._urls)]}} for i in range(images)
        ]
        content.append({"type": "text", "text": "What colour is the triangle?"})
        body = {
            "model": "bench", "messages": [{"role": "user", "content": content}], "max_tokens": tokens,
            "temperature": 0, "ignore_eos": True, "pruning": pruning,
        }  # fmt: skip
        answer = self._http.post(self._url, json=body)
        answer.raise_for_status()
        usage: dict[str, Any] = answer.json()["usage"]
        return usage

    def all(self, count: int, concurrency: int, work: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        """`count` requests, `concurrency` at a time."""
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(work, range(count)))


def throughput(engine: Engine, clients: Clients, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per variant and concurrency."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(options.rounds + 1):  # the first is not counted
        for name, pruning in VARIANTS.items():
            for concurrency in options.concurrency:
                count = max(2, concurrency) if not turn else options.requests
                start, steps, rows = time.perf_counter(), engine.counters.steps, engine.counters.step_rows
                usages = clients.all(count, concurrency, lambda seed, p=pruning: clients.ask(seed, options.tokens, p))
                seconds = time.perf_counter() - start
                if turn:
                    written = sum(usage["completion_tokens"] for usage in usages)
                    found.setdefault((name, concurrency), []).append(
                        {
                            "requests_per_second": count / seconds,
                            "tokens_per_second": written / seconds,
                            "first_token_ms": statistics.median(usage["timing"]["first_token_ms"] for usage in usages),
                            "prefill_ms": statistics.median(usage["timing"]["prefill_ms"] for usage in usages),
                            "total_ms": statistics.median(usage["timing"]["total_ms"] for usage in usages),
                            "rows_per_step": (engine.counters.step_rows - rows) / (engine.counters.steps - steps),
                            "kv_mib": usages[0]["pruning"]["kv_bytes"] / 2**20,
                        }
                    )
    rows_ = []
    for (name, concurrency), rounds in found.items():
        middle = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
        rows_.append({"variant": name, "concurrency": concurrency, **middle})
    return rows_


def memory(engine: Engine, clients: Clients, total: int) -> list[dict[str, float]]:
    """Resident memory while `total` mixed requests are answered, 16 at a time."""
    process, points, start = psutil.Process(), [], time.perf_counter()
    prunings = [*VARIANTS.values(), {"method": "fastv", "keep_ratio": 0.25}, {"method": "random", "keep_ratio": 0.5}]

    def work(seed: int) -> dict[str, Any]:
        return clients.ask(seed, 1 + seed % 24, prunings[seed % len(prunings)], images=seed % 3)

    step = max(1, total // 10)
    for done in range(0, total, step):
        clients.all(step, 16, work)
        while engine.pending or engine.running:
            time.sleep(0.01)
        gc.collect()
        points.append({"requests": done + step, "rss_mib": round(process.memory_info().rss / 2**20, 1),
                       "seconds": round(time.perf_counter() - start, 1)})  # fmt: skip
        print(points[-1], flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="24x1024", help="LAYERSxWIDTH")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--requests", type=int, default=32, help="per variant and round")
    parser.add_argument("--tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="REQUESTS", help="watch the memory over so many requests instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, processor = random_model(options.decoder, options.device, getattr(torch, options.dtype))
    engine = Engine("bench", model, processor, EngineLimits(max_batch=max(16, *options.concurrency)))
    engine.start()
    server = Server(create_app({"bench": engine}), port=0, log_level="error")
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    clients = Clients(server.url)
    try:
        rows = memory(engine, clients, options.memory) if options.memory else throughput(engine, clients, options)
    finally:
        server.should_exit = True
        thread.join()
    conditions = {
        **vars(options),
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "visual_tokens": SIDE * SIDE,
    }
    if not options.memory:
        heads = "variant, clients, requests/s, tokens/s, first token ms, prefill ms, answer ms, rows per step, KV MiB"
        table = [heads.split(", "), ["---"] * 9]
        table += [
            [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
        ]
        for cells in table:
            print(f"| {' | '.join(cells)} |")
    print(json.dumps({"conditions": conditions, "rows": rows}))


if __name__ == "__main__":
    main()
