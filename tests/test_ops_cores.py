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
    "facility, kernel": lambda x, q, m, b: facility_location(x, m, weights=q, width=0.3, backend=b),
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


@by_core
def test_a_batch_is_its_rows_and_takes_no_gradient(core):
    rng = torch.Generator().manual_seed(5)
    x, q = torch.randn(3, 17, 5, generator=rng), torch.rand(3, 17, generator=rng)
    before = x.clone()
    for backend in BACKENDS:
        kept = CORES[core](x.clone().requires_grad_(), q, 6, backend)
        assert kept.shape == (3, 6)
        rows = [CORES[core](x[row], q[row], 6, backend).tolist() for row in range(3)]
        assert kept.tolist() == rows
        strided = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        assert torch.equal(CORES[core](strided, q, 6, backend), kept)
    assert torch.equal(x, before)


@by_core
def test_larger_inputs(core):
    """Beyond the blocks in which pairs are screened, with alike neighbours and far ones."""
    rng = torch.Generator().manual_seed(9)
    coarse = torch.randn(30, 24, generator=rng).repeat_interleave(10, dim=0)
    for x in (coarse + 0.3 * torch.randn(300, 24, generator=rng), torch.randn(300, 24, generator=rng)):
        q = torch.rand(300, generator=rng)
        assert torch.equal(CORES[core](x, q, 40, "numba"), CORES[core](x, q, 40, "reference"))


@by_backend
def test_dpp_by_hand(backend):
    # d^2 is 4, 1, 9; 9 first: what is left of 4 is 4 - 36 / 9 = 0, of 1 it is 1 - 0
    kernel = torch.tensor([[4.0, 0, 6], [0, 1, 0], [6, 0, 9]])
    assert dpp(2, kernel=kernel, backend=backend).tolist() == [1, 2]
    # rank two is exhausted then: the lowest index that remains; zeros come in order
    assert dpp(2, kernel=torch.zeros(4, 4), backend=backend).tolist() == [0, 1]
    assert dpp(2, kernel=torch.diag(torch.tensor([0.0, 0, 0, 1])), backend=backend).tolist() == [0, 3]
    # 9, 9 and 1 times quality squared: 9, 2.25, 4
    factors = torch.tensor([[3.0, 0], [0, 3], [1, 0]])
    assert dpp(1, factors=factors, quality=torch.tensor([0.5, 0.4, 2]), backend=backend).tolist() == [2]
    # a ridge leaves something of what is spanned: 9 + 1 - 81 / 10 = 1.9 of a copy, against 1 + 1
    copies = torch.tensor([[3.0, 0], [3, 0], [0, 1]])
    assert dpp(2, factors=copies, ridge=1.0, backend=backend).tolist() == [0, 2]


@by_backend
def test_max_min_and_facility_by_hand(backend):
    x = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 0]])
    # nearest neighbours are at 1, 1, 1 and 1: the first; then -x is at 2
    assert max_min(x, 2, backend=backend).tolist() == [0, 2]
    # quality .1 * 2 against .9 * 1
    q = torch.tensor([1.0, 0.9, 0.1, 0.0])
    assert max_min(x, 2, quality=q, seed="quality", backend=backend).tolist() == [0, 1]
    # each covers itself alone but the zero vector, which covers nothing; shifted, 0 covers 1 + .5 + 0 + .5
    assert facility_location(x, 3, backend=backend).tolist() == [0, 1, 2]
    assert facility_location(x, 1, shifted=True, weights=torch.tensor([0.0, 0, 1, 0]), backend=backend).tolist() == [2]


ERRORS = {
    "num_keep": (lambda b: max_min(torch.ones(3, 2), 4, backend=b), "num_keep=4"),
    "shape": (lambda b: max_min(torch.ones(3), 1, backend=b), r"features has the shape \(3,\)"),
    "empty": (lambda b: max_min(torch.ones(0, 2), 1, backend=b), r"features has the shape \(0, 2\)"),
    "integers": (lambda b: max_min(torch.ones(3, 2).long(), 1, backend=b), "features is torch.int64"),
    "seed": (lambda b: max_min(torch.ones(3, 2), 1, seed="first", backend=b), "unknown seed='first'"),
    "quality": (lambda b: max_min(torch.ones(3, 2), 1, quality=torch.ones(2), backend=b), r"quality has the shape"),
    "negative": (lambda b: dpp(1, factors=torch.ones(2, 2), quality=-torch.ones(2), backend=b), "ranges from -1.0 to"),
    "nan": (lambda b: facility_location(torch.full((2, 2), torch.nan), 1, backend=b), "token 0 are not finite"),
    "inf": (lambda b: balanced(torch.full((2, 2), torch.inf), 1, relevance=torch.ones(2), backend=b), "not finite"),
    "huge": (lambda b: dpp(1, factors=torch.eye(2).double() * 1e200, backend=b), "of token 0 are not finite"),
    "both": (lambda b: dpp(1, backend=b), "factors and kernel are two ways"),
    "square": (lambda b: dpp(1, kernel=torch.ones(2, 3), backend=b), r"kernel has the shape \(2, 3\)"),
    "ridge": (lambda b: dpp(1, kernel=torch.eye(2), ridge=-1.0, backend=b), "ridge=-1.0"),
    "weights": (lambda b: facility_location(torch.eye(2), 1, weights=torch.full((2,), torch.inf), backend=b), "to inf"),
    "alpha": (lambda b: facility_location(torch.eye(2), 1, alpha=-2, backend=b), "alpha=-2"),
    "coverage": (lambda b: balanced(torch.eye(2), 1, relevance=torch.ones(2), coverage=-1, backend=b), "coverage=-1"),
    "backend": (lambda b: max_min(torch.eye(2), 1, backend=b + "x"), "unknown backend="),
}  # fmt: skip


@by_backend
@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_value(backend, name):
    call, text = ERRORS[name]
    with pytest.raises(AdaptPruneError, match=text):
        call(backend)
