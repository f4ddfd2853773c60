"""The adaptive NMS at the ends of what numbers can hold."""

from __future__ import annotations

import pytest
import torch

from adaptprune import AdaptPruneError
from adaptprune.ops import adaptive_nms

LINE = torch.tensor([[[0, 0, 0], [0, 0, 1], [0, 0, 2]]])
SCORES = torch.tensor([[3.0, 2.0, 1.0]])
BACKENDS = ["reference", "numba", "auto"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1e-300, 1e-200, 1.0, 1e200, 1e308])
def test_only_directions_of_keys_matter(backend, length):
    """Equal keys: 2 falls to 2 * (1 - 0.8007) = 0.399 and 1, two cells away, to 1 - 0.4111 = 0.589."""
    keys = torch.full((1, 3, 2), length, dtype=torch.float64)
    assert adaptive_nms(SCORES, keys, LINE, 2, backend=backend).tolist() == [[0, 2]]
    keys[0, 1] *= torch.tensor([1.0, -1.0])  # at right angles to the others: not suppressed
    assert adaptive_nms(SCORES, keys, LINE, 2, backend=backend).tolist() == [[0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keys_that_overflowed_are_refused(backend, bad, dtype):
    keys = torch.ones(1, 3, 2, dtype=dtype)
    keys[0, 1, 0] = bad
    with pytest.raises(AdaptPruneError, match="key of token 1 is not finite.*bfloat16 or float32"):
        adaptive_nms(SCORES, keys, LINE, 2, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_keep": True}, "num_keep=True"),
        ({"num_keep": 2.0}, "num_keep=2.0"),
        ({"distance_sigma": 1e-200}, "distance_sigma=1e-200"),
        ({"similarity_sigma": float("inf")}, "similarity_sigma=inf"),
        ({"distance_limit": float("nan")}, "distance_limit=nan"),
    ],
)
def test_numbers_that_cannot_be_used(backend, options, text):
    with pytest.raises(AdaptPruneError, match=text):
        adaptive_nms(SCORES, torch.ones(1, 3, 2), LINE, **{"num_keep": 2, "backend": backend, **options})
