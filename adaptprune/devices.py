"""Accelerators: what is handed to a model's, and waiting for it, so that a time means something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def synchronize(device: Any) -> None:
    """Wait until a device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def handed(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Tensors where a model is, those of floats in its type."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
