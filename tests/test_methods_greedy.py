"""Rules of features, by examples that were worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from adaptprune import AdaptPruneError, VisualTokens, make_pruner
from adaptprune.cues import TowerLayer
from adaptprune.methods.eadp import smoothed
from adaptprune.methods.otprune import squared_gram_factors

# unit vectors in the plane, by degrees: cosines are those of the angles between them


def plane(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def seen(features, text=None, attention=None, coords=None, **more) -> VisualTokens:
    count = len(features)
    line = torch.stack([torch.zeros(count), torch.zeros(count), torch.arange(count)], dim=1).long()
    tower = {} if attention is None else {-2: TowerLayer(torch.tensor(attention), torch.zeros(2, count, 1))}
    return VisualTokens(
        features.float(),
        line if coords is None else coords,
        features=features,
        text=text,
        tower=tower,
        num_layers=32,
        **more,
    )


def picks(method: str, tokens: VisualTokens) -> list[int]:
    """The order in which a greedy rule picks: each budget adds one token to the one before."""
    order: list[int] = []
    for number in range(1, len(tokens) + 1):
        kept = make_pruner(method).select(tokens, number).tolist()
        assert len(kept) == number
        assert set(order) < set(kept)
        order += set(kept) - set(order)
    return order


def test_divprune():
    # nearest neighbours are 10, 10, 40 and 80 degrees away: 3 is first; then the farthest from it, and so on:
    # 150 is 150 degrees from 0, 140 from 10 and 80 from 70; then 70 is 70 from 0 and 10 is 10
    assert picks("divprune", seen(plane(0, 10, 70, 150))) == [3, 0, 2, 1]
    # a zero vector is at distance 1 from everything, 0 and 1 are the same: nearest neighbours are 0, 0, 1 and 1 away.
    # All are 1 from token 2; then 1 is the same as 0, and 3 is still 1 from 2
    assert picks("divprune", seen(torch.tensor([[1.0, 0], [2, 0], [0, 0], [-1, 0]]))) == [2, 0, 3, 1]


@pytest.mark.parametrize(("size", "count"), [(576, 56), (10, 1), (2880, 282), (1, 1), (100, 10)])
def test_divprune_rounds_to_the_nearest(size, count):
    """0.098 N is 56.4, 0.98, 282.24, 0.098 and 9.8."""
    assert make_pruner("divprune").counts(size, 32) == {0: count}
    assert make_pruner("divprune", num_keep=7).target(size) == min(7, size)


def test_cenprune():
    # raw features (3, 1), (3, -1), (2, 0), (4, 0) have the mean (3, 0): centred they are up, down, left, right.
    # cos 0-1 is .8, 0-2, 0-3, 1-2, 1-3 are 3 / sqrt(10) = .949 and 2-3 is 1: mean to others .899 of 0 and 1, .966 of
    # 2 and 3: distinctiveness 1, 1, 0, 0. First 0; then 1, opposite; 2 and 3 offer nothing
    tokens = seen(torch.tensor([[3.0, 1], [3, -1], [2, 0], [4, 0]]), text=torch.tensor([[0.0, 1.0]]))
    assert picks("cenprune", tokens) == [0, 1, 2, 3]
    # relevance is minus the likeness to "up": 0 of token 0, 1 of 1, half of the others: their product is 0, 1, 0, 0
    assert picks("cenprune:form=dpp", tokens) == [1, 0, 2, 3]
    assert picks("cenprune:form=dpp,sign=positive", tokens)[0] == 0
    # cos 0-1 is .956, 0-2 .949, 1-2 .814: means .952, .885, .881, distinctiveness 0, .94, 1
    other = seen(torch.tensor([[1.0, 0.5], [3, 0.5], [2, 2]]))
    assert picks("cenprune", other) == [2, 1, 0]


def test_cdpruner():
    # to the text at 0 degrees: 1, .866, 0, -.5 -> "positive": 1, .911, .333, 0 (and 7e-7 each)
    tokens = seen(plane(0, 30, 90, 120), text=plane(0))
    # first 0; what is left is r^2 sin^2: .911^2 * .25 = .207 against .111 and 0
    assert picks("cdpruner:sign=positive", tokens)[:2] == [0, 1]
    # negative: 0, .089, .667, 1: first 3; then .008 * 1 against .444 * .25 = .111
    assert picks("cdpruner", tokens)[:2] == [3, 2]
    # the rank of the plane is exhausted by then: the others in order
    assert picks("cdpruner", tokens) == [3, 2, 0, 1]
    # halves: the best of 0, 1 is 1, of 2, 3 it is 3; three: two of the first half
    assert make_pruner("cdpruner:halves=True").select(tokens, 2).tolist() == [1, 3]
    assert make_pruner("cdpruner:halves=True").select(tokens, 3).tolist() == [0, 1, 3]
    odd = seen(plane(0, 30, 90), text=plane(0))
    assert make_pruner("cdpruner:halves=True").select(odd, 3).tolist() == [0, 1, 2]


def test_otprune():
    # channels' norms are 5 and 2: X = (.6, 0), (.8, 0), (0, 1); G has .36, .48, .64 and 1 on its own:
    # G G^T has .36, .64 and 1 on its diagonal: 2 first, then 1, then 0
    tokens = seen(torch.tensor([[3.0, 0], [4, 0], [0, 2]]))
    assert picks("otprune", tokens) == [2, 1, 0]
    for features in (tokens.features, torch.randn(3, 7, dtype=torch.float64)):
        scaled = features.double() / features.double().norm(dim=0)
        gram = scaled @ scaled.T
        factors = squared_gram_factors(features)
        torch.testing.assert_close(factors @ factors.T, gram @ gram.T)
    assert picks("otprune", seen(torch.zeros(3, 2))) == [0, 1, 2]


def test_scope():
    # cosines 0-1 .5, 0-2 0, 1-2 .866: sums 1.5, 2.366, 1.866. Kept 1: 0 and 2 lack .5 and .134, and cos 0-2 is 0
    flat = seen(plane(0, 60, 90), attention=[[1.0, 1, 1]])
    assert picks("scope", flat) == [1, 0, 2]
    # attention, mean over heads .9, .3, .6: 1.35, .71, 1.12; then .3 * (.5 + .866) = .41 against .6 * (.366 + 1) = .82
    heads = seen(plane(0, 60, 90), attention=[[1.0, 0.2, 0.8], [0.8, 0.4, 0.4]])
    assert picks("scope", heads) == [0, 2, 1]
    assert picks("scope:alpha=0", heads) == [1, 0, 2]
    # negative cosines do not count: each covers itself alone
    assert picks("scope", seen(plane(0, 120, 240), attention=[[0.1, 0.2, 0.3]])) == [2, 1, 0]


def test_eadp_scores():
    # one word at 0 degrees: s = -1, 0, 1 both ways: 0, .5, 1; smoothed on a line: (2*0 + .5) / 3, (0 + 1 + 1) / 4, ...
    tokens = seen(plane(0, 90, 180), text=plane(0))
    expected = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    torch.testing.assert_close(make_pruner("eadp").score(tokens), expected)
    torch.testing.assert_close(make_pruner("eadp:beta=2").score(tokens), expected**2)
    # Of two words, the one that tells the tokens apart has the lower entropy: at 90 degrees, all are alike
    two = seen(plane(0, 180), text=plane(90, 0))
    one = make_pruner("eadp").score(two)
    assert one[1] > one[0]


def test_eadp_covers_what_counts():
    # weights 0 .. 1 rise along the line; S = (1 + cos) / 2: token 2 covers itself (5/6) and half of token 1 (1/4);
    # token 1 half of both ends and itself: .5 + 1/12 + 5/12 = 1; token 0: 1/6 + 1/4
    tokens = seen(plane(0, 90, 180), text=plane(0))
    # kept 2: bests are 0, .5, 1: token 0 adds 1/6 + 0, token 1 adds 1/12 + 1/4
    assert picks("eadp", tokens) == [2, 1, 0]


def test_smoothing_counts_what_is_there():
    whole = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(3))
    peak = torch.zeros(9, dtype=torch.float64)
    peak[4] = 16.0
    # inside 16 parts count, on an edge 12, in a corner 9
    expected = [16 / 9, 32 / 12, 16 / 9, 32 / 12, 4, 32 / 12, 16 / 9, 32 / 12, 16 / 9]
    torch.testing.assert_close(smoothed(peak, whole), torch.tensor(expected, dtype=torch.float64))
    # a missing neighbour is not there, another grid's token is no neighbour
    part = torch.tensor([[0, 0, 0], [0, 0, 2], [3, 0, 1], [3, 1, 1]])
    torch.testing.assert_close(
        smoothed(torch.tensor([1.0, 2, 3, 6], dtype=torch.float64), part),
        torch.tensor([1.0, 2, 4, 5], dtype=torch.float64),
    )


def test_zooprune():
    # P doubles a token's only patch where it is positive and keeps it where not: sensitivities 2, 1, 2 of any direction
    def project(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return torch.where(x[:, :1] > 0, 2.0, 1.0) * x

    handed = torch.tensor([[[1.0, 0.0]], [[-1.0, 1.0]], [[1.0, 0.1]]])
    tokens = seen(plane(0, 120, 5), projector_input=handed, project=project)
    torch.testing.assert_close(
        make_pruner("zooprune:directions=3").sensitivity(tokens), torch.tensor([2.0, 1, 2]).double(), atol=1e-4, rtol=0
    )
    # two values that differ by rounding alone: make the first clearly higher. Stretched 1, 0, 1/2
    by = torch.tensor([3.0, 1.0, 2.0])[:, None]
    tokens = seen(plane(0, 120, 5), projector_input=handed, project=lambda x: by * x.flatten(1))
    assert picks("zooprune:directions=3", tokens) == [0, 2, 1]
    same = [make_pruner("zooprune", seed=seed).sensitivity(tokens).tolist() for seed in (0, 0)]
    assert same[0] == same[1]


def test_tops_counts():
    # 32 layers: 12 of 2 T, 12 of T and 8 of T / 4 are 38 T in all: of 576 tokens, 10 % are 57: T = 48
    pruner = make_pruner("tops:keep_ratio=0.1")
    assert pruner.stages(32) == (0, 12, 24)
    assert pruner.counts(576, 32) == {0: 96, 12: 48, 24: 12}
    assert pruner.stages(4) == (0, 2, 3)  # 1.5 and 3
    # once all are kept before the decoder: 12 * 100 + 12 T + 2 T = 32 * 60 gives T = 51.4
    assert make_pruner("tops:keep_ratio=0.6").counts(100, 32) == {0: 100, 12: 51, 24: 12}
    assert make_pruner("tops:keep_ratio=0.01").counts(10, 32) == {0: 2, 12: 1, 24: 1}
    with pytest.raises(AdaptPruneError, match=r"layers=\(12, 24\).*last one is 1"):
        pruner.stages(2)


def test_tops_selects():
    # r = .6, .3, .3 over their mean .4: 1.5, .75, .75; first 0. Then d: 1 - .5 = .5 and 1 - 0 = 1 (mean .75);
    # c of 1: (1 - .5) + (.866 - 0) = 1.366, of 2: (.866 - .5) + 1 = 1.366: the same. 2 is more unlike 0: d decides
    tokens = seen(plane(0, 60, 90), attention=[[0.6, 0.3, 0.3]])
    assert picks("tops", tokens) == [0, 2, 1]
    # no diversity, no coverage: relevance alone, ties to the lower index
    assert picks("tops:alpha=0,coverage=0", tokens) == [0, 1, 2]
    # within the decoder: the last row's attention, and hidden states
    inner = VisualTokens(
        plane(0, 60, 90).float(), torch.zeros(3, 3).long(), attention=torch.tensor([[0.1, 0.1, 0.3]]), layer=12
    )
    assert picks("tops", inner)[0] == 2


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("cenprune:form=both", "unknown form='both'"),
        ("cdpruner:sign=minus", "unknown sign='minus'"),
        ("scope:alpha=-1", "alpha=-1 is not allowed"),
        ("scope:alpha=1e999", "alpha=inf is not allowed"),
        ("eadp:beta=0", "beta=0 is not allowed"),
        ("eadp:entropy_share=2", "entropy_share=2 is not allowed"),
        ("zooprune:directions=0", "directions=0 is not allowed"),
        ("zooprune:step=-1", "step=-1 is not allowed"),
        ("tops:layers=(24,12)", r"layers=\(24, 12\) is not allowed"),
        ("tops:layers=(12,32)", r"layers=\(12, 32\) is not allowed"),
        ("tops:coverage=-1", "coverage=-1 is not allowed"),
        ("tops:layer=3", "unknown option 'layer' for 'tops'"),
    ],
)
def test_options_are_checked(spec, text):
    with pytest.raises(AdaptPruneError, match=text):
        make_pruner(spec)


METHODS = ["divprune", "cenprune", "cenprune:form=dpp", "cdpruner", "cdpruner:halves=True", "otprune", "scope", "eadp"]


@pytest.mark.parametrize("method", [*METHODS, "zooprune:directions=2", "tops"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_selection_takes_no_gradient_and_leaves_its_inputs_alone(method, dtype):
    for count in (1, 9):
        features = torch.randn(count, 4).to(dtype).requires_grad_()
        tokens = seen(
            features,
            text=torch.randn(2, 4).to(dtype),
            attention=torch.rand(2, count).tolist(),
            projector_input=features[:, None],
            project=lambda x: x[:, 0],
        )
        before = features.detach().clone()
        pruner = make_pruner(method)
        pruner.warm_up()
        for number in range(1, count + 1):
            kept = pruner.select(tokens, number)
            assert len(kept) == number
            assert kept.dtype == torch.int64
            assert not kept.requires_grad
        assert torch.equal(features, before)
        assert features.grad is None
