"""The greedy kernels: numba keeps what the readable reference keeps, whatever the input; hand-worked cases; errors."""

from __future__ import annotations

import pytest
import torch

from adaptprune import AdaptPruneError
from adaptprune.ops import balanced, dpp, facility_location, max_min

BACKENDS = ["reference", "numba", "auto"]
by_backend = pytest.mark.parametrize("backend", BACKENDS)


def gram(features: torch.Tensor) -> torch.Tensor:
    return features.double() @ features.double().mT


#: Each takes features (.., N, D), numbers of 0 or more per token (.., N), how many to keep, and a backend.
CORES = {
    "dpp": lambda x, q, m, b: dpp(m, factors=x, backend=b),
    "dpp, unit": lambda x, q, m, b: dpp(m, factors=x, quality=q, unit=True, backend=b),
    "dpp, ridge": lambda x, q, m, b: dpp(m, factors=x, quality=q, ridge=0.5, backend=b),
    "dpp, kernel": lambda x, q, m, b: dpp(m, kernel=gram(x), quality=q, backend=b),
    "max_min": lambda x, q, m, b: max_min(x, m, backend=b),
    "max_min, quality": lambda x, q, m, b: max_min(x, m, quality=q, seed="quality", backend=b),
    "max_min, quality later": lambda x, q, m, b: max_min(x, m, quality=q, backend=b),
    "facility": lambda x, q, m, b: facility_location(x, m, backend=b),
    "facility, weights": lambda x, q, m, b: facility_location(x, m, weights=q, shifted=True, backend=b),
    "facility, relevance": lambda x, q, m, b: facility_location(x, m, relevance=q, alpha=0.7, backend=b),
    "balanced": lambda x, q, m, b: balanced(x, m, relevance=q, backend=b),
    "balanced, coverage": lambda x, q, m, b: balanced(x, m, relevance=q, diversity=0.0, coverage=3.0, backend=b),
}
by_core = pytest.mark.parametrize("core", CORES)


def features(kind: str, rng: torch.Generator, count: int, width: int) -> torch.Tensor:
    x = torch.randn(count, width, generator=rng, dtype=torch.float64)
    if kind == "duplicates":
        return x[torch.randint(0, max(1, count // 3), (count,), generator=rng)]
    if kind == "some zero":
        return x * (torch.rand(count, 1, generator=rng) < 0.6)
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "equal":
        return x[:1].expand(count, width).clone()
    if kind == "integers":  # many exact ties between tokens that are not equal
        return torch.randint(-1, 2, (count, width), generator=rng).double()
    if kind == "clustered":
        return x[torch.randint(0, 4, (count,), generator=rng)] + 0.05 * x
    if kind == "low rank":
        return x[:, :2] @ torch.randn(2, width, generator=rng, dtype=torch.float64)
    if kind == "lengths":
        return x * 10.0 ** (3 * torch.randn(count, 1, generator=rng, dtype=torch.float64))
    return x


KINDS = ["normal", "duplicates", "some zero", "zero", "equal", "integers", "clustered", "low rank", "lengths"]


def numbers(kind: int, rng: torch.Generator, count: int) -> torch.Tensor:
    q = torch.rand(count, generator=rng, dtype=torch.float64)
    return [q, torch.ones_like(q), (q * 3).floor() / 2, torch.zeros_like(q), q**8][kind % 5]


@by_core
@pytest.mark.parametrize("kind", KINDS)
def test_numba_keeps_what_the_reference_keeps(core, kind):
    for round_ in range(12):
        rng = torch.Generator().manual_seed(round_)
        count, width = int(torch.randint(1, 50, (), generator=rng)), int(torch.randint(1, 12, (), generator=rng))
        dtype = [torch.float64, torch.float32, torch.float16, torch.bfloat16][round_ % 4]
        x, q = features(kind, rng, count, width).clamp(-6e4, 6e4).to(dtype), numbers(round_, rng, count)
        for number in sorted({1, 2, (count + 1) // 2, count}):
            if number <= count:
                expected = CORES[core](x, q, number, "reference")
                kept = CORES[core](x, q, number, "numba")
                assert kept.dtype == torch.int64
                assert kept.tolist() == sorted(set(kept.tolist()))
                assert len(kept) == number
                assert kept.tolist() == expected.tolist(), f"seed {round_}, N={count}, D={width}, {dtype}"
