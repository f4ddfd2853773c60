"""Selection kernels: pure functions over tensors. Every backend returns what the reference returns."""

from adaptprune.ops.adaptive_nms import adaptive_nms
from adaptprune.ops.greedy import balanced, dpp, facility_location, max_min
from adaptprune.ops.inputs import BACKENDS

__all__ = ["BACKENDS", "adaptive_nms", "balanced", "dpp", "facility_location", "max_min"]
