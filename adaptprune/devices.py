"""Accelerators work on behind the back of Python: waiting for one, so that a time means something."""

from __future__ import annotations

from typing import Any


def synchronize(device: Any) -> None:
    """Wait until a device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
