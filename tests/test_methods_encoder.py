"""Rules before the decoder and for video, on examples small enough to be worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from adaptprune import AdaptPruneError, VisualTokens, make_pruner
from tests.encoder_tokens import layer, many, numbered, places, watched

# -- VisionZip --------------------------------------------------------------------------------------------------------


def zipped(with_class: bool) -> VisualTokens:
    """Token 5 is attended to most, then 6; keys lie along two axes, and only their mean over heads says which."""
    along = torch.tensor([[1, 0], [2, 0], [0, 3], [0, 1], [1, 0], [5, 5], [0, 1], [1, 1]], dtype=torch.float32)
    noise = torch.tensor([[0.0, 9.0]]).expand(8, 2) * torch.tensor([1, -1, 1, -1, 1, -1, 1, -1.0])[:, None]
    keys = torch.stack([along + noise, along - noise])
    attention = [[0, 0, 0, 0, 0, 4, 3, 0], [0, 0, 0, 0, 0, 5, 1, 0]]
    seen = layer(attention, keys, torch.zeros(2, 2) if with_class else None)
    return numbered(places((2, 4)), tower={-2: seen}, class_state=torch.tensor([-1.0]) if with_class else None)


def test_visionzip_with_a_class_token():
    # 4 = class token, patch 5, and 2 contextual: of 0 1 2 3 4 6 7 every third, 0 and 3; the class token stands at 6
    seen, rule = zipped(with_class=True), make_pruner("visionzip", contextual=0.5)
    keep = rule.select(seen, 4)
    assert keep.tolist() == [0, 3, 5, 6]
    # to 0: 1, 4 and 7 (which is as much like 3), 0 + 12/3; to 3: 2 and 6, 3 + 8/2
    assert rule.merge(seen, keep)[:, 0].tolist() == [-1, 5, 4, 7]


def test_visionzip_without_a_class_token():
    # patches 5 and 6; of 0 1 2 3 4 7 every third; to 0: 1, 4, 7; to 3: 2
    seen, rule = zipped(with_class=False), make_pruner("visionzip", contextual=0.5)
    keep = rule.select(seen, 4)
    assert keep.tolist() == [0, 3, 5, 6]
    assert rule.merge(seen, keep)[:, 0].tolist() == [5, 6, 4, 5]
    declined = make_pruner("visionzip", contextual=0.5, class_token=False)
    assert "class_state" not in declined.needs
    with_class = zipped(with_class=True)
    assert declined.merge(with_class, declined.select(with_class, 4))[:, 0].tolist() == [5, 6, 4, 5]


@pytest.mark.parametrize("share", [0.0, 0.15625, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("given", ["both", "state", "query", "neither"])
def test_visionzip_keeps_its_budget_whatever_the_shares(share, given):
    """A class token counts only where both its query and its state are known."""
    seen = zipped(with_class=True)
    tower = {
        -2: dataclasses.replace(seen.tower[-2], class_query=torch.zeros(2, 2) if given in ("both", "query") else None)
    }
    seen = dataclasses.replace(seen, tower=tower, class_state=seen.class_state if given in ("both", "state") else None)
    rule = make_pruner("visionzip", contextual=share)
    for number in range(1, 9):
        keep = rule.select(seen, number)
        states = rule.merge(seen, keep)
        assert len(set(keep.tolist())) == len(keep) == len(states) == number
        assert (states[0, 0] == -1) == (given == "both")


def test_visionzips_default_is_the_published_split():
    seen, rule = many((24, 24)), make_pruner("visionzip")
    for number, dominant in ((192, 162), (128, 108), (64, 54)):
        states = rule.merge(seen, rule.select(seen, number))
        top = seen.tower[-2].attention.sum(dim=0).topk(dominant - 1).indices.sort().values
        assert torch.equal(states[:dominant], torch.cat([seen.class_state[None], seen.hidden[top]]))


# -- FasterVLM and VisPruner ------------------------------------------------------------------------------------------


def test_fastervlm_is_the_mean_over_heads():
    seen = watched(places((1, 4)), [[0.5, 0.25, 0.125, 0.125], [0, 0.375, 0.125, 0.5]])  # means .25 .3125 .125 .3125
    assert make_pruner("fastervlm").select(seen, 1).tolist() == [1]  # of equals, the lower
    assert make_pruner("fastervlm").select(seen, 2).tolist() == [1, 3]
    assert make_pruner("fastervlm").select(seen, 3).tolist() == [0, 1, 3]


def falling(features: torch.Tensor) -> VisualTokens:
    """Attention falls with the number."""
    count = len(features)
    return watched(places((1, count)), [float(count - n) for n in range(count)], features=features)


def test_vispruner_leaves_out_what_is_alike():
    # 0 is important; of 1 2 3 one leaves: 1 is nearly 2, 3 is not
    seen = falling(torch.tensor([[1.0, 1], [1, 0], [1, 0.1], [0, 1]]))
    assert make_pruner("vispruner", important=0.34).select(seen, 3).tolist() == [0, 2, 3]


def test_vispruner_halves_its_list_where_much_has_to_leave():
    # 2..11: all of 2 4 6 8 10 leave; then, of 3 5 7 9 11, all of 3 7 11
    assert make_pruner("vispruner").select(falling(torch.eye(12)), 4).tolist() == [0, 1, 5, 9]


@pytest.mark.parametrize(("first", "second", "kept"), [(0.6, 0.28, 18), (0.6, 0.6, 18), (0.28, 0.6, 16)])
def test_vispruners_list_goes_on_from_the_most_alike(first, second, kept):
    """20 tokens, 9 leave: 0 2 .. 14 (equal to 1), then one of the list that 16 and 18 begin, the more alike first.

    16 is like 3 by `first`, 18 like 5 by `second`. As 16 18 1 3 5 .., 16 and 3 are in different halves, and 16 leaves.
    As 18 16 1 3 5 .., no even one is like an odd one, and the first leaves, which is 18.
    """
    features = torch.eye(20, dtype=torch.float64)
    features[0:16:2] = features[1]
    for token, other, much in ((16, 3, first), (18, 5, second)):
        features[token] = 0
        features[token, other], features[token, token] = much, {0.6: 0.8, 0.28: 0.96}[much]
    expected = sorted([kept, *range(1, 20, 2)])
    assert make_pruner("vispruner", important=0.0).select(falling(features), 11).tolist() == expected


def test_vispruner_looks_beyond_the_nearest_neighbours():
    """70 even tokens are more like each other than like any odd one, and like one odd token the more, the later."""
    features = torch.zeros(140, 71)
    features[::2, 0], features[::2, 1] = 1, torch.arange(70) / 100
    features[1::2, 1:] = torch.eye(70)
    kept = make_pruner("vispruner", important=0.0).select(falling(features), 132)
    assert kept.tolist() == [n for n in range(140) if n % 2 or n < 124]


# -- PruMerge ---------------------------------------------------------------------------------------------------------


def standing_out(count: int, outliers: dict[int, float], with_class: bool = True, own: bool = False) -> VisualTokens:
    """Two heads of two channels; attention is in proportion to 1, of outliers to what they are given."""
    # as one head of 4: q . k / 2 = 2 k, with all channels of a key k, of a query 1
    logs = torch.tensor([math.log(outliers.get(n, 1.0)) for n in range(count)]) / 2
    keys = logs[None, :, None].expand(2, count, 2).contiguous()
    query = torch.ones(count, 2, 2) if own else torch.ones(2, 2)
    seen = layer(torch.zeros(2, count).tolist(), keys, query if with_class else None)
    return numbered(places((1, count)), tower={-1: seen})


@pytest.mark.parametrize("own", [False, True])
def test_prumerge_keeps_what_stands_out(own):
    # attention: seven of 1/16 (both quartiles), 7 has 9/16
    seen, rule = standing_out(8, {7: 9}, own=own), make_pruner("prumerge", neighbours=2)
    keep = rule.select(seen, 4)
    assert keep.tolist() == [0, 7]
    # 0 holds the dropped (0 + .. + 6) / 16; to 7 are added its neighbours 0 and 1
    assert rule.merge(seen, keep)[:, 0].tolist() == pytest.approx([21 / 16, 7 + 1 / 16])


def test_prumerge_keeps_no_more_than_it_may():
    seen, rule = standing_out(12, {3: 8, 9: 9}), make_pruner("prumerge")
    assert rule.select(seen, 12).tolist() == [0, 3, 9]  # two outliers, and the dropped at 0
    assert rule.select(seen, 2).tolist() == [3, 9]  # 9, and the dropped at 3
    flat = standing_out(8, {})
    assert rule.select(flat, 4).tolist() == [0, 1]  # nothing stands out: the first, and the dropped at the second


def test_prumerges_outliers_are_beyond_the_whiskers():
    # 1 1 2 2 3 3 4 6 8: quartiles 2 and 4, so above 4 + 1.5 * 2 = 7; the dropped go on at the 6
    seen = standing_out(9, {0: 8, 1: 6, 2: 4, 3: 3, 4: 3, 5: 2, 6: 2})
    assert make_pruner("prumerge").select(seen, 8).tolist() == [0, 1]


def test_prumerge_takes_as_many_neighbours_as_there_are():
    seen, rule = standing_out(3, {0: 2}), make_pruner("prumerge")  # attention 1/2 1/4 1/4
    keep = rule.select(seen, 2)
    assert rule.merge(seen, keep)[:, 0].tolist() == pytest.approx([(1 + 2) / 4, (1 + 2) / 4])


@pytest.mark.parametrize("method", ["prumerge", "prumerge-plus"])
def test_prumerge_needs_a_class_token(method):
    with pytest.raises(AdaptPruneError, match="this tower has none: use fastervlm"):
        make_pruner(method).select(standing_out(8, {7: 9}, with_class=False), 4)


def test_prumerge_plus_adds_steps():
    # 24 / 2 = 12, a third of it is 4; what is dropped goes on at 1
    seen, rule = standing_out(24, {5: 9, 8: 9}), make_pruner("prumerge-plus")
    assert rule.select(seen, 20).tolist() == [0, 1, 4, 5, 8, 12, 16, 20]
    assert rule.select(seen, 5).tolist() == [0, 1, 4, 5, 8]  # outliers first, then steps
    # 93 / 1 / 3 is 31, though 1 / (1 / 93) is a little less than 93 in floating point
    assert rule.select(standing_out(93, {7: 9}), 90).tolist() == [0, 1, 7, 31, 62]


# -- HoloV, HiRED, Nuwa -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "number", "expected"),
    [
        ([0.4, 0.1, 0.1, 0, 0.1, 0.1, 0.1, 0.1], 5, [0, 1, 2, 4, 5]),  # means 3 : 2, so 3 and 2
        ([0.4, 0.1, 0.1, 0, 0.1, 0.1, 0.1, 0.1], 2, [0, 4]),  # 1.2 and 0.8
        ([0.1, 0.1, 0.1, 0.7, 0, 0, 0, 0], 6, [0, 1, 2, 3, 4, 5]),  # the first is full
        ([0, 0, 0, 0, 0, 0, 0, 0], 4, [0, 1, 4, 5]),
    ],
)
def test_holov_splits_by_attention(attention, number, expected):
    seen = watched(places((2, 4)), attention, features=torch.eye(8))
    assert make_pruner("holov", crops=2).select(seen, number).tolist() == expected


def test_holovs_runs_may_depend_on_the_budget():
    # int(1.78 * 8 / 4) = 3 runs of 3, 3, 2; means 2 : 2 : 3, so 1, 1 and 2
    seen = watched(places((2, 4)), [0.1, 0, 0, 0, 0, 0.1, 0.1, 0], features=torch.eye(8))
    assert make_pruner("holov", crops=0).select(seen, 4).tolist() == [0, 5, 6, 7]


def hired_view(grids, marked: list[int]) -> VisualTokens:
    """Attention at the last layer but one rises with the number; at the first, only marks have any."""
    coords = places(*grids)
    first = [1.0 if n in marked else 0.0 for n in range(len(coords))]
    rising = layer([float(n) for n in range(len(coords))])
    return numbered(coords, tower={-2: rising, 0: layer(first)})


def test_hired_splits_by_marks():
    # a view of 4 x 4, four tiles of 2 x 2; 3 marks, at rows 0, 1, 3 and columns 0, 0, 3; 4 of 8 for the view, its last
    seen = hired_view([(4, 4), *[(2, 2)] * 4], [0, 4, 15])
    # quarters: 2 0 0 1 of the other 4, so 3 and 1
    assert make_pruner("hired").select(seen, 8).tolist() == [12, 13, 14, 15, 17, 18, 19, 31]
    # stripes: 1 1 0 1, so 2 1 0 1
    reference = make_pruner("hired", stripes="reference")
    assert reference.select(seen, 8).tolist() == [12, 13, 14, 15, 18, 19, 23, 31]
    # without marks by size
    assert make_pruner("hired", marks=0.0).select(seen, 8).tolist() == [12, 13, 14, 15, 19, 23, 27, 31]
    # half is at most the view; a full tile leaves the rest to the others
    assert make_pruner("hired").select(seen, 32).tolist() == list(range(32))
    assert len(make_pruner("hired").select(seen, 31)) == 31


def test_hired_of_one_grid_is_its_attention():
    assert make_pruner("hired").select(hired_view([(3, 3)], [0]), 4).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [(0, [9]), (1, [10, 11]), (3, [12, 15]), (4, [13, 14, 16, 17])],
)
def test_hireds_quarters_of_an_odd_side_are_those_of_the_view(mark, expected):
    """A large grid as large as the view: a mark is credited to the quarter that its own cell lies in."""
    seen = hired_view([(3, 3), (3, 3)], [mark])
    number = 2 * len(expected)
    assert [n for n in make_pruner("hired").select(seen, number).tolist() if n >= 9] == expected


def test_nuwa_keeps_something_of_every_region():
    rising = [float(n) for n in range(16)]
    four = watched(places((4, 4)), rising)
    assert make_pruner("nuwa").select(four, 6).tolist() == [5, 7, 12, 13, 14, 15]
    assert make_pruner("nuwa").select(four, 2).tolist() == [13, 15]  # the best of the regions' best
    assert make_pruner("nuwa", per_region=2).select(four, 8).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert make_pruner("nuwa", region=4).select(four, 3).tolist() == [13, 14, 15]
    odd = watched(places((3, 3)), rising[:9])
    assert make_pruner("nuwa").select(odd, 4).tolist() == [4, 5, 7, 8]
    frames = watched(places((2, 2), (2, 2)), rising[:8])
    assert make_pruner("nuwa").select(frames, 2).tolist() == [3, 7]


# -- ToMe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kept", "states", "sizes"),
    [
        (3, [1, 2, 3], [0.5, 2, 3], [2, 1, 1]),  # 0 and 1 are most alike
        (2, [1, 3], [0.5, 2.5], [2, 2]),
        (1, [3], [1.5], [4]),
        (4, [0, 1, 2, 3], [0, 1, 2, 3], [1, 1, 1, 1]),
    ],
)
def test_tome_merges_pairs(number, kept, states, sizes):
    seen = numbered(places((2, 2)), features=torch.tensor([[1, 0], [1, 0.1], [0, 1], [0.5, 1]]))
    rule = make_pruner("tome")
    keep = rule.select(seen, number)
    assert keep.tolist() == kept
    assert rule.merge(seen, keep)[:, 0].tolist() == states
    assert rule.weights(seen, keep).tolist() == sizes


def test_tomes_means_count_every_token_once():
    # 0, 2 and 4 are like 1; then, of 1 and 3, 1 joins 3: (0 + 1 + 2 + 3 + 4) / 5
    seen = numbered(places((1, 5)), features=torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]]))
    rule = make_pruner("tome")
    assert rule.merge(seen, torch.tensor([1, 3]))[:, 0].tolist() == [7 / 4, 3]
    assert rule.merge(seen, rule.select(seen, 1))[:, 0].tolist() == [2]


def test_tome_compares_what_was_merged():
    # 0 joins 1, and turns it towards 3: of 1 and 5, it is now 1 that is most like 3
    features = torch.tensor([[1, 0.9], [1, 0], [0, 1], [0, 1], [-1, 0.1], [-1, 0.1]])
    seen, rule = numbered(places((2, 3)), features=features), make_pruner("tome")
    keep = rule.select(seen, 2)
    assert keep.tolist() == [3, 5]
    assert rule.merge(seen, keep)[:, 0].tolist() == [(0 + 1 + 2 + 3) / 4, (4 + 5) / 2]


# -- HAWK and AdaptPrune before the decoder ---------------------------------------------------------------------------


def asked() -> VisualTokens:
    """Means over the instruction 3 4 0 and 0 0 2: of length 1, .6 .8 0 and 0 0 1."""
    return numbered(places((1, 3)), affinity=torch.tensor([[[1.0, 8, 0], [5, 0, 0]], [[0, 0, 1], [0, 0, 3]]]))


def test_hawk_counts_every_head_the_same():
    assert make_pruner("hawk").score(asked()).tolist() == pytest.approx([0.6, 0.8, 1])
    assert make_pruner("hawk").select(asked(), 2).tolist() == [1, 2]
    assert make_pruner("hawk", weights_of_heads=(1.0, 0.5)).select(asked(), 2).tolist() == [0, 1]
    with pytest.raises(AdaptPruneError, match="weights_of_heads has 3 numbers, and this model 2"):
        make_pruner("hawk", weights_of_heads=(1.0, 0.5, 2.0)).select(asked(), 2)
    silent = dataclasses.replace(asked(), affinity=torch.zeros(2, 2, 3))
    assert make_pruner("hawk").select(silent, 2).tolist() == [0, 1]


def test_hawk_rounds_up():
    rule = make_pruner("hawk", keep_ratio=0.1)
    assert [rule.target(size) for size in (1, 10, 30, 31, 576)] == [1, 1, 3, 4, 58]
    assert rule.counts(31, 32) == {0: 4}
    assert make_pruner("hawk", keep_ratio=0.07).target(100) == 7  # though 0.07 * 100 > 7 in floating point
    assert make_pruner("hawk", num_keep=5).target(3) == 3


@pytest.mark.parametrize("cue", ["tower", "affinity"])
def test_adaptprune_before_the_decoder_suppresses_twins(cue):
    """1 is first (the centre); 0 is its twin, 0.61 * 0.2 after that, and 2 is not, 0.30."""
    scores, twins = [1.0, 0.9, 0.5], torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    seen = watched(places((1, 3)), scores, features=twins, affinity=torch.tensor([[scores]]))
    assert make_pruner("adaptprune-encoder", cue=cue).select(seen, 2).tolist() == [1, 2]
    apart = dataclasses.replace(seen, features=torch.eye(3))
    assert make_pruner("adaptprune-encoder", cue=cue).select(apart, 2).tolist() == [0, 1]
    assert make_pruner("adaptprune-encoder", cue=cue).needs == {"features", {"tower": "tower:-2"}.get(cue, cue)}


def test_a_twin_that_matches_badly_gains_nothing_by_being_suppressed():
    """1 is first; its twin 0 matches worst of all, and 2 a little better."""
    seen = numbered(places((1, 3)), features=torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    seen = dataclasses.replace(seen, affinity=torch.tensor([[[-0.5, 0.9, -0.3]]]))
    assert make_pruner("adaptprune-encoder", cue="affinity").select(seen, 2).tolist() == [1, 2]


# -- video ------------------------------------------------------------------------------------------------------------


def test_evs_keeps_what_is_new():
    """Three frames of three cells: in the second, the middle one changes, in the third, the last one."""
    features = torch.eye(5)[[0, 1, 2, 0, 3, 2, 0, 3, 4]]
    seen = numbered(places(*[(1, 3)] * 3), features=features)
    rule = make_pruner("evs")
    assert rule.score(seen).tolist() == [math.inf] * 3 + [0, 1, 0, 0, 0, 1]
    assert rule.select(seen, 5).tolist() == [0, 1, 2, 4, 8]
    assert rule.select(seen, 6).tolist() == [0, 1, 2, 3, 4, 8]
    assert rule.select(seen, 2).tolist() == [0, 1]


def test_evs_compares_frames_that_follow_each_other_and_cells_that_were_there():
    seen = numbered(places((1, 2), (1, 3)), features=torch.ones(5, 2))
    assert make_pruner("evs").score(seen).tolist() == pytest.approx([math.inf, math.inf, 0, 0, math.inf])
    later = dataclasses.replace(seen, coords=seen.coords * torch.tensor([7, 1, 1]))  # frames 0 and 7
    assert torch.equal(make_pruner("evs").score(later), make_pruner("evs").score(seen))


def test_evs_refuses_a_picture():
    with pytest.raises(AdaptPruneError, match="compares frames, and there is one.* Use divprune"):
        make_pruner("evs").select(many((3, 3)), 4)


def test_vidcom2_looks_at_the_channels_that_vary_least():
    features = torch.tensor([[0.0, 9], [0, -9], [0, 0], [1, 0]])
    seen = numbered(places((1, 4)), features=features)
    assert make_pruner("vidcom2").select(seen, 1).tolist() == [3]
    assert make_pruner("vidcom2", channels=1.0).select(seen, 2).tolist() == [0, 1]


def test_vidcom2s_frames_share_by_how_special_they_are():
    # the second frame is far from every centre: p = 0 and 1, so base * 0.5 and base * 1.5
    seen = numbered(places((1, 4), (1, 4)), features=torch.tensor([[0.0]] * 4 + [[8], [-8], [8], [-8]]))
    rule = make_pruner("vidcom2", channels=1.0)
    assert rule.select(seen, 4).tolist() == [0, 4, 5, 6]
    assert rule.select(seen, 6).tolist() == [0, 1, 4, 5, 6, 7]  # 1.5 and 4.5; but there are four
    # five bandwidths, 1/8 to 2, for each of the two centres
    assert rule.score(seen)[0] == -10
    # one frame, whose centre is the video's: d = 1
    pair = numbered(places((1, 2)), features=torch.tensor([[1.0], [-1]]))
    wanted = -2 * sum(math.exp(-1 / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))
    assert rule.score(pair).tolist() == pytest.approx([wanted] * 2)
