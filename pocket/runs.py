"""What every stage needs to survive a kill: a log in JSON lines, checkpoints, a learning-rate schedule.

Contract: a checkpoint is written to a temporary name and renamed, so a half-written file is never found; it holds
tensors and plain values only and is read with ``weights_only=True``.
"""

import json
import os
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch


class Log:
    """Appends one JSON object a line to ``run/log.jsonl``, with seconds since this process started."""

    def __init__(self, run: Path, stage: str) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._path, self._stage, self._start = run / "log.jsonl", stage, time.monotonic()

    def write(self, **values: Any) -> None:
        """Add a line; floats are rounded to four digits."""
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
        line = {"stage": self._stage, "seconds": round(time.monotonic() - self._start, 1), **rounded}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or None where there is none."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


def moved(value: Any, device: str | torch.device | torch.dtype) -> Any:
    """The same with all tensors on a device, or of a type: of tuples, dictionaries and data classes made of such."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(one, device) for one in value)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value) if one.init}
        )
    return value


def learning_rate(step: int, steps: int, warmup: int = 50, hold: float = 0.5, floor: float = 0.03) -> float:
    """Factor on the base rate: linear warm-up, constant until ``hold``, then linear down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = step / max(1, steps)
    return 1.0 if progress < hold else max(floor, 1 - (1 - floor) * (progress - hold) / (1 - hold))


def set_rate(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale the learning rate of every group from its initial value."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor
