"""How long selections take: `OMP_NUM_THREADS=1 python benchmarks/selection.py`.

2,880 tokens (LLaVA-NeXT's five views) of 1,024 channels, of which 288 are kept, on one core, after numba has compiled.
"random" features are independent: nearly at right angles to one another, the worst case of rules that put work off.
"picture" features are a smooth field, a common mean and noise. Before anything is timed, the fast path must keep what
the reference keeps. The least of several runs counts; `cpu` is the processor's time of the same run, which other
programs on the machine disturb less.

Prints a table, or with `--json` one JSON document; `--smoke` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch
from torch import Tensor

from adaptprune.ops import balanced, dpp, facility_location, max_min

VIEWS, SIDE, CHANNELS = 5, 24, 1024

#: Each takes features, numbers of 0 to 1 per token, how many to keep, and a backend.
SELECTIONS: dict[str, Callable[[Tensor, Tensor, int, str], Tensor]] = {
    "dpp": lambda x, q, m, b: dpp(m, factors=x, unit=True, backend=b),
    "dpp, quality (CDPruner)": lambda x, q, m, b: dpp(m, factors=x, quality=q, unit=True, backend=b),
    "max-min (DivPrune)": lambda x, q, m, b: max_min(x, m, backend=b),
    "max-min, quality (Cen-Prune, ZOO-Prune)": lambda x, q, m, b: max_min(x, m, quality=q, seed="quality", backend=b),
    "facility location, relevance (SCOPE)": lambda x, q, m, b: facility_location(x, m, relevance=q, backend=b),
    "facility location, weights (EADP)": lambda x, q, m, b: facility_location(x, m, weights=q, shifted=True, backend=b),
    "balanced (TOPS)": lambda x, q, m, b: balanced(x, m, relevance=q, backend=b),
}


def features(kind: str, side: int) -> Tensor:
    """(views * side^2, CHANNELS)."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(VIEWS * side * side, CHANNELS, generator=rng)
    if kind == "random":
        return noise
    coarse = torch.randn(VIEWS, CHANNELS, max(2, side // 6), max(2, side // 6), generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    field = smooth.flatten(2).transpose(1, 2).reshape(-1, CHANNELS)
    return (field + 0.5 * noise + torch.randn(CHANNELS, generator=rng)).contiguous()


def timed(run: Callable[[], Tensor], rounds: int) -> dict[str, float]:
    """The least wall and processor time, in milliseconds."""
    wall, cpu = [], []
    for _ in range(rounds):
        start, start_cpu = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"wall_ms": round(1e3 * min(wall), 1), "cpu_ms": round(1e3 * min(cpu), 1)}


def rows(side: int, rounds: int) -> list[dict[str, Any]]:
    found = []
    for kind in ("random", "picture"):
        x = features(kind, side)
        q = torch.rand(len(x), generator=torch.Generator().manual_seed(1))
        keep = len(x) // 10
        for name, select in SELECTIONS.items():
            if not torch.equal(select(x, q, keep, "numba"), select(x, q, keep, "reference")):
                sys.exit(f"{name} on {kind} features does not keep what the reference keeps")
            case = {"selection": name, "features": kind, "tokens": len(x), "kept": keep}
            found.append(
                {**case, **timed(lambda select=select, x=x, q=q, keep=keep: select(x, q, keep, "numba"), rounds)}
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document in place of the table")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each")
    parser.add_argument("--smoke", action="store_true", help="few tokens, two runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = rows(6 if options.smoke else SIDE, 2 if options.smoke else options.rounds)
    if options.json:
        about = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        print(json.dumps({"about": about, "channels": CHANNELS, "rows": measured}, indent=1))
        return
    print("| selection | features | tokens | kept | wall ms | cpu ms |\n|---|---|---|---|---|---|")
    for row in measured:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
