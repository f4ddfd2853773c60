"""What is installed, and whether the parts that everything needs work here."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from adaptprune._version import __version__

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "numba", "pillow", "typer", "rich")
OPTIONAL = (
    "torchvision",
    "accelerate",
    "bitsandbytes",
    "peft",
    "flash-attn",
    "matplotlib",
    "openai",
    "gradio",
    "fastapi",
    "vllm",
    "ray",
)


def examine() -> dict[str, Any]:
    """Versions, devices, optional parts, and checks (None: passed; otherwise the reason)."""
    return {
        "versions": {
            "adaptprune": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) or "not installed" for name in NEEDED},
        },
        "devices": _devices(),
        "optional": {name: _version(name) for name in OPTIONAL},
        "checks": {"compiled selection": _passes(_selection), "pocket model": _passes(_pocket)},
    }


def versions() -> dict[str, str]:
    """What a result depends on, for the record."""
    return {"adaptprune": __version__, **{name: _version(name) or "" for name in ("torch", "transformers", "numba")}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, f"cpu ({torch.get_num_threads()} threads)"]


def _passes(check: Callable[[], None]) -> str | None:
    try:
        check()
    except Exception as error:  # whatever it is, it is what the user has to read
        return f"{type(error).__name__}: {error}"
    return None


def _selection() -> None:
    from adaptprune.ops import adaptive_nms

    coords = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(3))[None]
    arguments = torch.linspace(0, 1, 9)[None], torch.eye(9)[None], coords, 4
    if not torch.equal(adaptive_nms(*arguments, backend="numba"), adaptive_nms(*arguments, backend="reference")):
        raise RuntimeError("the compiled selection and its reference disagree")


def _pocket() -> None:
    from adaptprune.models.loading import pocket_path

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (pocket_path() / name).is_file():
            raise FileNotFoundError(f"{name} is missing: install the package again")
