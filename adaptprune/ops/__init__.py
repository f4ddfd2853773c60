"""Selection kernels: pure functions over tensors. Every backend returns what `adaptprune.ops.reference` returns."""

from adaptprune.ops.adaptive_nms import BACKENDS, adaptive_nms

__all__ = ["BACKENDS", "adaptive_nms"]
