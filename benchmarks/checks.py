"""What the checks around every forward cost, in one run: `python benchmarks/checks.py`.

Time spent inside the checks (`hooks/holds.py`, `hooks/facts.py`) is summed per forward by timers around them, so that
the timers' own cost counts as the checks'; it is divided by the time of the same forward.
Random weights, float32, one image; medians over the rounds, with their extremes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import adaptprune
from adaptprune.bench import build, describe, parse_size
from adaptprune.hooks import facts, holds
from adaptprune.hooks.seams import cache as kv

CHECKS = (
    (holds, "check"),
    (facts, "check_continued"),
    (facts, "check_decoder"),
    (facts, "check_forward"),
    (facts, "check_held"),
    (facts, "check_pictures"),
)


class Clock:
    """Sums the time that is spent inside the checks."""

    def __init__(self) -> None:
        self.spent, self._depth = 0.0, 0
        for module, name in CHECKS:
            setattr(module, name, self._timed(getattr(module, name)))

    def _timed(self, check: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin, self._depth = time.perf_counter(), self._depth + 1
            try:
                return check(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:  # one check may call another
                    self.spent += time.perf_counter() - begin

        return timed

    def measure(self, work: Any) -> tuple[Any, float, float]:
        """What `work` returns, its seconds, and those spent inside the checks."""
        self.spent, begin = 0.0, time.perf_counter()
        result = work()
        return result, time.perf_counter() - begin, self.spent


@torch.inference_mode()
def run(size: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One row for the prompt and one for a decode step."""
    model, inputs = build(*parse_size(size), torch.float32, torch.device("cpu"))
    token = torch.tensor([[5]])
    taken: dict[str, list[tuple[float, float]]] = {"prompt": [], "decode step": []}
    clock = Clock()
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.1):
        for turn in range(rounds + 1):
            output, seconds, checks = clock.measure(lambda: model(**inputs, logits_to_keep=1, use_cache=True))
            cache, found = kv.cache_of(output), []
            for _ in range(steps):
                _, *pair = clock.measure(lambda: model(input_ids=token, **kv.handing(model, cache), use_cache=True))  # noqa: B023
                found.append(tuple(pair))
            if turn:
                taken["prompt"].append((seconds, checks))
                taken["decode step"] += found
    return [_row(size, what, pairs) for what, pairs in taken.items()]


def _row(size: str, what: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    shares = [100 * checks / seconds for seconds, checks in pairs]
    return {
        "decoder": size,
        "forward": what,
        "rounds": len(pairs),
        "ms": round(1000 * statistics.median(seconds for seconds, _ in pairs), 2),
        "checks_us": round(1e6 * statistics.median(checks for _, checks in pairs), 1),
        "share_percent": round(statistics.median(shares), 4),
        "share_percent_min": round(min(shares), 4),
        "share_percent_max": round(max(shares), 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoder", default="24x1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the rows into this JSON file as well")
    options = parser.parse_args()
    rows = run(options.decoder, options.rounds, options.steps)
    for row in rows:
        print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps({"machine": describe(torch.float32, "cpu"), "rows": rows}, indent=2) + "\n")
