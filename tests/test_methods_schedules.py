"""Rules that act before several layers: where these are in decoders of any depth, and how many tokens each keeps."""

from __future__ import annotations

import math

import pytest

from adaptprune import AdaptPruneError, make_pruner
from adaptprune.methods.schedules import common_ratio, scaled
from adaptprune.tables import methods


@pytest.mark.parametrize(
    ("layers", "depth", "stages"),
    [
        ((2, 6, 15), 32, (2, 6, 15)),
        ((2, 6, 15), 64, (4, 12, 30)),
        ((2, 6, 15), 6, (1, 2, 3)),  # 0.375, 1.125 and 2.8125: the first two would both be 1
        ((2, 6, 15), 4, (1, 2, 3)),
        ((8, 16, 24), 6, (2, 3, 5)),  # 1.5, 3 and 4.5: halves go up
        ((8, 16, 24), 4, (1, 2, 3)),
        ((2, 8, 16), 6, (1, 2, 3)),
        ((2, 8, 16), 4, (1, 2, 3)),
    ],
)
def test_stages_are_at_the_same_depth_of_any_decoder(layers, depth, stages):
    assert scaled(layers, depth) == stages


def test_a_decoder_may_be_too_shallow():
    with pytest.raises(
        AdaptPruneError, match=r"before layers 1, 2, 3 \(layers=\(2, 6, 15\) of 32\), and .* last one is 2: use a rule"
    ):
        make_pruner("sparsevlm").stages(3)
    with pytest.raises(AdaptPruneError, match=r"or earlier `layers`\.$"):
        make_pruner("v2drop:layers=(31,)").stages(4)  # 3.875 is 4, and the last layer is 3
    with pytest.raises(AdaptPruneError, match="before layers 0, 0"):
        make_pruner("deft").stages(1)


@pytest.mark.parametrize(
    "value", ["16", 16, [8, 16], (), (0, 4), (4, 4), (8, 4), (8, 32), (8.0, 16), (True, 4)], ids=repr
)
@pytest.mark.parametrize("method", ["sparsevlm", "pyramiddrop", "v2drop"])
def test_layers_are_checked(method, value):
    with pytest.raises(AdaptPruneError, match="layers=.* is not allowed: it is a tuple of"):
        make_pruner(method, layers=value)


def test_staged_rules_have_layers_in_place_of_layer():
    assert make_pruner("pyramiddrop:layers=(4,20)").layer == 4
    assert make_pruner("pyramiddrop:layers=(4,20)").stages(32) == (4, 20)
    with pytest.raises(AdaptPruneError, match="layers=\\(8, 16\\) is not allowed: it is a tuple of 3 layers"):
        make_pruner("sparsevlm", layers=(8, 16))
    for method in ("sparsevlm", "pyramiddrop", "v2drop", "deft"):
        with pytest.raises(AdaptPruneError, match="unknown option 'layer'"):
            make_pruner(method, layer=3)
        pruner = make_pruner(method, keep_ratio=0.7)
        assert make_pruner(pruner.spec()) == pruner
        row = next(row for row in methods() if row["name"] == method)
        assert "layer" not in row["options"]


@pytest.mark.parametrize(
    ("method", "size", "num_keep", "depth", "counts"),
    [
        # q = 1/2: (8 + 8/2 + 8/4 + 8/8) / 32 = 15/32 of 576
        ("pyramiddrop", 576, 270, 32, {8: 288, 16: 144, 24: 72}),
        # (1 + 1/2 + 1/4 + 1/8) / 4 = 15/32 of 64
        ("pyramiddrop", 64, 30, 4, {1: 32, 2: 16, 3: 8}),
        # (2 + 1/2 + 2/4 + 1/8) / 6 = 25/48
        ("pyramiddrop", 48, 25, 6, {2: 24, 3: 12, 5: 6}),
        # (2 + 6/2 + 8/4 + 16/8) / 32 = 9/32
        ("v2drop", 64, 18, 32, {2: 32, 8: 16, 16: 8}),
        # (1 + 1/2 + 1/4 + 3/8) / 6 = 17/48
        ("v2drop", 48, 17, 6, {1: 24, 2: 12, 3: 6}),
        ("v2drop", 64, 30, 4, {1: 32, 2: 16, 3: 8}),
        ("v2drop", 5, 5, 32, {2: 5, 8: 5, 16: 5}),
        ("v2drop", 1, 1, 32, {2: 1, 8: 1, 16: 1}),
    ],
)
def test_counts_of_equal_parts(method, size, num_keep, depth, counts):
    assert make_pruner(method, num_keep=num_keep).counts(size, depth) == counts


def test_the_default_of_pyramiddrop_is_what_was_published():
    assert make_pruner("pyramiddrop").counts(576, 32) == {8: 288, 16: 144, 24: 72}


@pytest.mark.parametrize("depth", [4, 6, 24, 32, 80])
def test_the_mean_over_layers_is_what_was_asked_for(depth):
    for ratio in (0.3, 0.5, 0.77, 0.99):
        counts = make_pruner("v2drop", keep_ratio=ratio).counts(2880, depth)
        present = [2880] * depth
        for stage, kept in counts.items():
            present[stage:] = [kept] * (depth - stage)
        assert 0 <= math.floor(ratio * 2880) - sum(present) / depth < 1  # each stage is rounded down
    assert common_ratio(1.0, (2, 8), 32) == 1


def test_too_few_for_the_layers_before_the_first_stage():
    with pytest.raises(AdaptPruneError, match=r"keep_ratio=0.2 is too few .* Use keep_ratio=0.25 or more.*`layers`"):
        make_pruner("pyramiddrop:keep_ratio=0.2").stages(32)
    with pytest.raises(AdaptPruneError, match="Use keep_ratio=0.3334 or more"):
        make_pruner("pyramiddrop:keep_ratio=0.3333").stages(6)
    with pytest.raises(AdaptPruneError, match="num_keep=100 of 576 is too few .* Use num_keep=144 or more"):
        make_pruner("pyramiddrop:num_keep=100").counts(576, 32)
    assert make_pruner("pyramiddrop:num_keep=144").counts(576, 32) == {8: 1, 16: 1, 24: 1}
    # 0.46875 is enough, though of 4 tokens it is 1, less than the third that is there before layer 2 of 6
    assert make_pruner("pyramiddrop").counts(4, 6) == {2: 1, 3: 1, 5: 1}


@pytest.mark.parametrize(
    ("method", "size", "num_keep", "counts"),
    [
        ("sparsevlm", 576, 192, (300, 200, 110)),
        ("sparsevlm", 576, 128, (303, 110, 36)),
        ("sparsevlm", 576, 64, (66, 30, 17)),
        ("sparsevlm-v2", 576, 192, (300, 200, 118)),
        ("sparsevlm-v2", 576, 128, (238, 108, 60)),
        ("sparsevlm-v2", 576, 64, (66, 34, 20)),
        ("sparsevlm", 576, 160, (301, 155, 73)),  # half way, rounded down
        ("sparsevlm-v2", 576, 96, (152, 71, 40)),
        ("sparsevlm", 576, 32, (33, 15, 8)),  # half of what 64 has
        ("sparsevlm", 576, 384, (576, 400, 220)),  # twice what 192 has, no more than there are
        ("sparsevlm", 288, 96, (150, 100, 55)),
        ("sparsevlm", 3, 1, (1, 1, 1)),
        ("sparsevlm", 50, 50, (50, 50, 50)),
    ],
)
def test_counts_of_sparsevlm(method, size, num_keep, counts):
    pruner = make_pruner(method, num_keep=num_keep)
    assert pruner.counts(size, 32) == dict(zip((2, 6, 15), counts, strict=True))
    assert pruner.counts(size, 6) == pruner.counts(size, 4) == dict(zip((1, 2, 3), counts, strict=True))


def test_stages_of_deft():
    pruner = make_pruner("deft", keep_ratio=0.3)
    assert pruner.counts(100, 32) == {0: 44, 16: 30}  # 30 + 0.2 * 70
    assert pruner.counts(10, 6) == {0: 5, 3: 3}  # 3 + ceil(1.4)
    assert pruner.counts(1, 4) == {0: 1, 2: 1}
    assert make_pruner(pruner, margin=0).counts(100, 32) == {0: 30, 16: 30}
    assert make_pruner(pruner, margin=1).counts(100, 32) == {0: 100, 16: 30}
    assert pruner.needs_at(0, 32) == {"tower:-2"}
    assert pruner.needs_at(16, 32) == {"rows"}
    assert pruner.smallest_layer == 0
