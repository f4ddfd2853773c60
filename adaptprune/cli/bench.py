"""`adaptprune bench`"""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table

from adaptprune.cli.app import print_json, stderr, stdout


def command(
    decoder: list[str] = typer.Option(["24x1024", "6x4096"], help="Decoders to time, LAYERSxWIDTH."),
    method: list[str] = typer.Option(
        ["adaptprune", "adaptprune:keys=previous", "fastv", "random"], help="Methods or specs."
    ),
    keep_ratio: list[float] = typer.Option([0.1, 0.25, 0.5], help="Fractions of visual tokens kept."),
    rounds: int = typer.Option(3, help="Counted rounds."),
    threads: int = typer.Option(None, help="CPU threads. Default: what torch takes."),
    device: str = typer.Option("cpu", help="cpu, cuda, mps."),
    dtype: str = typer.Option("float32", help="float32, float16 or bfloat16."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Time the prefill, pruned against unpruned, on random weights."""
    import torch

    from adaptprune.bench import compare, describe
    from adaptprune.checks import whole
    from adaptprune.models.placement import pick_device, pick_dtype

    whole("rounds", rounds, 1, 1000)
    kind, place = pick_dtype(dtype), pick_device(device)
    if threads is not None:
        whole("threads", threads, 1, 1024)
        torch.set_num_threads(threads)
    results = {}
    with stderr.status("starting") as status:
        for size in decoder:
            results[size] = compare(
                size, method, keep_ratio, rounds=rounds, dtype=kind, device=place, progress=status.update
            )
    conditions = describe(kind, str(place))
    if as_json:
        print_json({"conditions": conditions, "decoders": results})
    else:
        _show(results, conditions)


command.__name__ = "bench"


def _show(results: dict[str, list[dict[str, Any]]], conditions: str) -> None:
    for size, rows in results.items():
        table = Table(
            "method", "keep", "prefill ms", "speed-up", "bound", "of bound", "selection", "KV MiB", title=size
        )
        for row in rows:
            table.add_row(
                row["method"],
                f"{row['keep_ratio']:g}",
                f"{row['prefill_ms']:.0f} ({row['prefill_ms_min']:.0f}-{row['prefill_ms_max']:.0f})",
                f"{row['speedup']:.2f}x",
                f"{row['bound']:.2f}x",
                f"{row['of_bound']:.1%}",
                f"{row['selection_ms']:.1f} ms, {row['selection_share']:.2%}",
                f"{row['kv_bytes'] / 2**20:.1f}",
            )
        stdout.print(table)
    stdout.print(f"[dim]{conditions}[/]")
