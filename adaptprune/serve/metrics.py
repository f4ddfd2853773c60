"""Numbers for Prometheus. Names follow its conventions; every series has the label `model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Usage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts answers and reads the engines' state at every scrape.

    Parameters
    ----------
    engines : mapping of str to Engine
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self._registry = CollectorRegistry()
        self._registry.register(self)

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"adaptprune_{name}", text, ["model", *labels], registry=self._registry)

        def histogram(name: str, text: str) -> Any:
            return Histogram(f"adaptprune_{name}", text, ["model"], registry=self._registry, buckets=SECONDS)

        self._requests = counter(
            "requests", "Requests, by outcome: ok, client_left, or the code of the error", "outcome"
        )
        self._prompt = counter("prompt_tokens", "Prompt tokens read")
        self._written = counter("completion_tokens", "Tokens written")
        self._visual = counter("visual_tokens", "Visual tokens before pruning")
        self._kept = counter("visual_tokens_kept", "Visual tokens after pruning")
        self._first = histogram("first_token_seconds", "From taking a request in to its first token")
        self._total = histogram("request_seconds", "From taking a request in to its last token")
        self._queue = histogram("queue_seconds", "From taking a request in to reading its prompt")

    def collect(self) -> Iterator[Any]:
        """Called by the registry at every scrape."""
        gauges: dict[str, tuple[str, Any]] = {
            "running_rows": ("Rows of the running batch", lambda engine: engine.running),
            "waiting_requests": ("Requests not in the batch yet", lambda engine: engine.waiting),
            "kv_cache_bytes": ("Bytes of the running batch's KV cache", lambda engine: engine.cache_bytes),
        }
        counters: dict[str, tuple[str, Any]] = {
            "prefills": ("Prompts read", lambda engine: engine.counters.prefills),
            "steps": ("Decode steps", lambda engine: engine.counters.steps),
            "step_rows": ("Rows of all decode steps", lambda engine: engine.counters.step_rows),
        }
        for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in table.items():
                family = kind(f"adaptprune_{name}", text, labels=["model"])
                for model, engine in self._engines.items():
                    family.add_metric([model], value(engine))
                yield family

    def answered(self, model: str, usage: Usage) -> None:
        """Note a finished answer."""
        self._requests.labels(model, "ok").inc()
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._written.labels(model).inc(usage.completion_tokens)
        self._visual.labels(model).inc(usage.visual_tokens)
        self._kept.labels(model).inc(usage.visual_tokens_kept)
        self._first.labels(model).observe(usage.first_token_ms / 1000)
        self._total.labels(model).observe(usage.total_ms / 1000)
        self._queue.labels(model).observe(usage.queue_ms / 1000)

    def refused(self, model: str, code: str) -> None:
        """Note a request that ended with an error.

        Labels are never forgotten: `model` has to be one that is served, or "" where none was reached, and `code` one
        of the server's own.
        """
        self._requests.labels(model, code).inc()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
