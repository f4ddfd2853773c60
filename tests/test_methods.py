"""Every rule equals its formula, worked out again in float64 with numpy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, VisualTokens, make_pruner
from adaptprune.methods import METHODS
from adaptprune.methods.adaptprune import centre_weight
from adaptprune.methods.grid import lattice
from adaptprune.methods.pool import cells
from adaptprune.methods.quotas import apportion
from adaptprune.pruner import budget
from tests.oracles.cues import everything
from tests.oracles.nms import greedy


def tokens(rows=6, columns=6, grids=1, heads=3, width=8, seed=0) -> VisualTokens:
    """Every cue; keys of two dimensions, so that many are nearly parallel."""
    made = everything(rows, columns, grids, heads, width, seed=seed)
    keys = torch.randn(len(made), 2, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(made, keys=keys)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 9), (1, 5), (1, 1)])
@pytest.mark.parametrize("grids", [1, 3])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_adaptprune_is_its_formula(rows, columns, grids, share):
    seen = tokens(rows, columns, grids)
    number = budget(share, len(seen))
    score = seen.attention.double().numpy().mean(axis=0)
    y, x = (np.linspace(-n / 2, n / 2, n) for n in (rows, columns))
    gaussian = np.exp(-(y[:, None] ** 2) / (2 * (rows / 2) ** 2) - x[None] ** 2 / (2 * (columns / 2) ** 2))
    score = score * np.tile((gaussian / gaussian.max()).ravel(), grids)
    expected = sorted(greedy(score, seen.keys.double().numpy(), seen.coords.numpy(), number))
    kept = make_pruner("adaptprune", keep_ratio=share).select(seen, number)
    assert kept.tolist() == expected


def test_the_centre_weight_is_the_papers_on_its_grid():
    """24 x 24: sigma 12 on linspace(-12, 12, 24), rescaled to a maximum of 1."""
    weight = centre_weight(tokens(24, 24).coords).double().view(24, 24)
    ruler = torch.linspace(-12, 12, 24, dtype=torch.float64)
    paper = torch.exp(-(ruler[:, None] ** 2 + ruler[None] ** 2) / (2 * 12**2))
    torch.testing.assert_close(weight, paper / paper.max(), atol=1e-6, rtol=0)
    assert weight.max() == 1
    assert torch.equal(weight, weight.flip(0))


def test_fastv_is_top_k_of_mean_attention_with_ties_to_the_lower_index():
    seen = tokens()
    mean = seen.attention.double().numpy().mean(axis=0)
    expected = sorted(np.argsort(-mean, kind="stable")[:10].tolist())
    assert make_pruner("fastv").select(seen, 10).tolist() == expected
    flat = dataclasses.replace(seen, attention=torch.ones(2, 36))
    assert make_pruner("fastv").select(flat, 5).tolist() == [0, 1, 2, 3, 4]


def test_random_is_seeded():
    seen = tokens()
    first = make_pruner("random").select(seen, 9)
    assert torch.equal(first, make_pruner("random").select(seen, 9))
    assert not torch.equal(first, make_pruner("random:seed=1").select(seen, 9))
    counts = torch.zeros(36)
    for seed in range(2000):
        counts[make_pruner("random", seed=seed).select(seen, 9)] += 1
    # each token is kept with probability 1/4: 500 +- 19.4; 5 deviations
    assert (counts - 500).abs().max() < 97


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (3, 17), (1, 9), (10, 4)])
def test_grid_spreads_evenly(rows, columns):
    coords = tokens(rows, columns).coords
    for count in range(1, len(coords) + 1):
        picked = lattice(coords, count)
        assert len(picked) == count
        assert (picked.diff() > 0).all()
    if rows == columns == 24:
        sixteen = coords[lattice(coords, 16)][:, 1:]
        assert sixteen.unique().tolist() == [3, 9, 15, 21]  # a 4 x 4 lattice, centred


@pytest.mark.parametrize("method", adaptprune.list_methods())
@pytest.mark.parametrize("grids", [1, 2, 5])
def test_every_method_keeps_exactly_what_is_asked(method, grids):
    seen, pruner = tokens(4, 5, grids), make_pruner(method)
    if method == "evs" and grids == 1:
        pytest.skip("it compares frames, and refuses a single one")
    for number in (1, 2, 7, len(seen) - 1, len(seen)):
        kept = pruner.select(seen, number)
        assert kept.dtype == torch.int64
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert 1 <= len(kept) <= number
        # pool keeps whole rows and columns of cells
        assert len(kept) == number or method == "pool" or pruner.adaptive
        assert 0 <= kept.min() <= kept.max() < len(seen)


def acts_where_it_is_told(method: str) -> bool:
    """Whether a rule has one stage, the option `layer`."""
    return next(field.init for field in dataclasses.fields(METHODS.get(method)) if field.name == "layer")


@pytest.mark.parametrize("method", [*filter(acts_where_it_is_told, adaptprune.list_methods())])
def test_specs_and_options(method):
    pruner = make_pruner(f"{method}:keep_ratio=0.25,layer=3")
    assert (pruner.keep_ratio, pruner.layer) == (0.25, 3)
    assert make_pruner(pruner.spec()) == pruner
    assert make_pruner(pruner, layer=4) == make_pruner(method, keep_ratio=0.25, layer=4)
    assert pruner.stages(32) == (3,)
    assert pruner.counts(100, 32) == {3: 25}
    assert pruner.summary
    with pytest.raises(dataclasses.FrozenInstanceError):
        pruner.keep_ratio = 0.9
    with pytest.raises(AdaptPruneError, match="layer='two' is not allowed"):
        make_pruner(method, layer="two")


def test_budget_rounds_as_the_released_code():
    assert budget(0.1, 576) == 57
    assert budget(0.001, 576) == 1
    assert budget(1, 576) == 576
    assert all(budget(r, n) == max(1, int(r * n)) for r in (0.1, 0.29, 1 / 3, 0.999) for n in (1, 2, 100, 576, 2880))


def test_apportion_is_exact_and_fair():
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    for total in range(60):
        sizes = [7, 20, 33]
        shares = apportion(total, sizes)
        assert sum(shares) == total
        assert all(math.floor(total * s / 60) <= share <= s for share, s in zip(shares, sizes, strict=True))


@pytest.mark.parametrize("option", ["distance_sigma", "similarity_sigma", "centre_sigma"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "wide"])
def test_sigmas_are_checked(option, value):
    with pytest.raises(AdaptPruneError, match=f"{option}={value!r} is not allowed"):
        make_pruner("adaptprune", **{option: value})


def test_random_seed_is_checked():
    with pytest.raises(AdaptPruneError, match="seed=-1 is not allowed"):
        make_pruner("random:seed=-1")


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (5, 9), (1, 7)])
@pytest.mark.parametrize("number", [1, 2, 7, 57])
def test_pool_is_an_average_over_regions(rows, columns, number):
    number = min(number, rows * columns)
    one, pruner = tokens(rows, columns), make_pruner("pool")
    keep = pruner.select(one, number)
    high, wide = len(set((keep // columns).tolist())), len(set((keep % columns).tolist()))
    assert high * wide == len(keep)
    states = one.hidden.double().numpy().reshape(rows, columns, -1)
    merged = pruner.merge(one, keep).double().numpy()
    for cell in range(high * wide):
        i, j = divmod(cell, wide)
        top, bottom, left, right = (
            i * rows // high,
            -(-(i + 1) * rows // high),
            j * columns // wide,
            -(-(j + 1) * columns // wide),
        )
        np.testing.assert_allclose(merged[cell], states[top:bottom, left:right].mean(axis=(0, 1)), atol=1e-6)
        row, column = divmod(int(keep[cell]), columns)
        assert top <= row < bottom
        assert left <= column < right
    three = tokens(rows, columns, grids=3)  # each grid is pooled by itself
    keep = pruner.select(three, 3 * number)
    last = dataclasses.replace(one, hidden=three.hidden[2 * rows * columns :])
    torch.testing.assert_close(pruner.merge(three, keep)[-high * wide :], pruner.merge(last, keep[: high * wide]))


@pytest.mark.parametrize(
    ("budget", "shape"), [(288, (16, 18)), (144, (12, 12)), (57, (7, 8)), (28, (5, 5)), (11, (3, 3)), (1, (1, 1))]
)
def test_pool_keeps_the_shape_of_the_image(budget, shape):
    assert cells(24, 24, budget) == shape


def test_pool_needs_whole_grids():
    seen = tokens()
    part = VisualTokens(seen.hidden[:20], seen.coords[:20])
    with pytest.raises(AdaptPruneError, match="only 20 of 4 x 6"):
        make_pruner("pool").select(part, 5)
