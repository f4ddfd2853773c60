"""The theoretical costs, worked out by hand."""

import pytest

from adaptprune.flops import layer_flops, prefill_flops, speedup_bound


def test_one_layer_by_hand():
    # n=2, d=3, m=5: four d x d projections 4*2ndd = 144; scores and values 2*2nnd = 48; three n x d x m, 3*2ndm = 180
    assert layer_flops(2, 3, 5) == 144 + 48 + 180


def test_sum_over_layers():
    assert prefill_flops([2, 2, 1], 3, 5) == 2 * 372 + (72 + 12 + 90)


def test_the_fields_bound_for_llava():
    """32 layers x 4096 (MLP 11008), 64 text tokens, K = 2: published as 2.32 / 2.95 / 4.06."""
    bounds = [speedup_bound(64, 576, {2: kept}, 32, 4096, 11008) for kept in (192, 128, 64)]
    assert bounds == pytest.approx([2.32, 2.95, 4.06], abs=0.01)
    assert speedup_bound(64, 576, {2: 576}, 32, 4096, 11008) == 1
    assert speedup_bound(64, 576, {}, 32, 4096, 11008) == 1


def test_the_bound_of_several_stages():
    """Of four layers, two read 6 tokens, one 4 and one 3; a layer of n tokens of width 3 costs as above."""
    cost = {n: layer_flops(n, 3, 5) for n in (6, 4, 3)}
    expected = 4 * cost[6] / (2 * cost[6] + cost[4] + cost[3])
    assert speedup_bound(2, 4, {3: 1, 2: 2}, 4, 3, 5) == pytest.approx(expected)
