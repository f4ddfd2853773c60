"""Giving memory back to the system that the allocators keep for later."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from typing import Any


def give_back(device: Any = None) -> None:
    """Hand back what is free, of the process and of `device` (torch.device).

    Takes some milliseconds, so it is for idle moments. Does nothing where the C library has no such call.
    """
    gc.collect(1)  # what errors and their tracebacks still hold; all generations would take far longer
    if device is not None and device.type in ("cuda", "mps"):
        import torch

        getattr(torch, device.type).empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # not glibc; not a system with one C library for all
        ctypes.CDLL(None).malloc_trim(0)
