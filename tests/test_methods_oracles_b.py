"""Rules before the decoder, and for video, equal oracles that were written from their definitions alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from adaptprune import AdaptPruneError, VisualTokens, make_pruner
from adaptprune.cues import TowerLayer
from tests.oracles import encoder_merges as merges
from tests.oracles import encoder_picks as picks
from tests.oracles import video
from tests.oracles.cues import everything
from tests.oracles.visual import without_class

#: Rows, columns, grids: N from 1 to 60.
SHAPES = [(1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 5, 1), (3, 3, 1), (3, 4, 1), (2, 3, 2), (3, 5, 3), (6, 8, 1), (6, 10, 1)]


def cases(shapes=SHAPES, seeds=2, *, ties=False):
    """Tokens, and how many to keep: every number for few tokens, else some from both ends and between.

    `ties`: also such that many tokens have the same attention.
    """
    for rows, columns, grids in shapes:
        for seed in range(seeds):
            tokens = everything(rows, columns, grids, text=1 + 2 * seed, seed=100 * seed + rows * columns)
            count = len(tokens)
            for keep in sorted(
                {*range(1, min(count, 8) + 1), count // 3, count // 2, 4 * count // 5, count - 1, count}
            ):
                if keep:
                    yield tokens, keep


def with_ties(tokens: VisualTokens) -> VisualTokens:
    """Attention of few values, whose means over four heads are exact."""
    made = torch.Generator().manual_seed(len(tokens))
    tower = {
        number: dataclasses.replace(layer, attention=torch.randint(3, layer.attention.shape, generator=made) / 64)
        for number, layer in tokens.tower.items()
    }
    return dataclasses.replace(tokens, tower=tower)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def same(name: str, tokens: VisualTokens, keep: int, expected: list[int], **options) -> torch.Tensor:
    kept = make_pruner(name, **options).select(tokens, keep)
    assert kept.tolist() == expected, f"{name} {options}: {keep} of {len(tokens)}"
    return kept


def same_states(name: str, tokens: VisualTokens, keep: int, expected: merges.Merged, **options) -> torch.Tensor:
    kept = same(name, tokens, keep, expected[0], **options)
    states = make_pruner(name, **options).merge(tokens, kept)
    assert states.dtype == tokens.hidden.dtype
    np.testing.assert_allclose(array(states), expected[1], atol=1e-5, rtol=1e-5)
    return kept


def compare_slots(name: str, tokens: VisualTokens, keep: int, expected: merges.Merged, **options) -> None:
    same(name, tokens, keep, expected[0], **options)


# -- the oracles themselves, on cases that were worked out by hand -----------------------------------------------------


def test_shares_by_hand():
    assert picks.shares(10, [1, 1, 1], [10, 10, 10]) == [4, 3, 3]
    assert picks.shares(10, [8, 1, 1], [4, 10, 10]) == [4, 3, 3]  # 8/1/1, four of which find no room: 2 and 2
    assert picks.shares(5, [1, 0], [2, 9]) == [2, 3]  # with nothing to go by, as many to each
    assert picks.shares(0, [1, 2], [3, 3]) == [0, 0]


def test_visionzip_by_hand():
    attention = np.array([[0.4, 0.1, 0.3, 0.05, 0.15]])
    keys = np.array([[[9, 9], [1, 0], [9, 8], [0, 1], [1, 0.1]]])
    hidden = np.array([[1.0], [10.0], [100.0], [1000.0], [10000.0]])
    # 4 kept, a quarter of them contextual: 3 dominant (0, 2, 4); of the rest (1, 3) 1 is the target, 3 goes to it
    slots, states = merges.visionzip(attention, keys, hidden, 4, contextual=0.25)
    assert slots == [0, 1, 2, 4]
    assert states.ravel().tolist() == [1, 100, 10000, 1010]
    # with the class token 2 patches (0, 2); target 1, to which 3 and 4 go: 10 + 5500; 4 lends its place
    slots, states = merges.visionzip(attention, keys, hidden, 4, class_state=np.array([-1.0]), contextual=0.25)
    assert slots == [0, 1, 2, 4]
    assert states.ravel().tolist() == [-1, 1, 100, 5510]


def test_vispruner_by_hand():
    attention = np.array([[0.5, 0.3, 0.1, 0.06, 0.04]])
    features = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [1, 0.0]])
    # 2 of attention (0, 1), then of 2, 3, 4: a = 2, 4, b = 3: both 0.707, so that the earlier goes
    assert picks.vispruner(attention, features, 4) == [0, 1, 3, 4]
    # 1 of attention, then of 1, 2, 3, 4: a = 1, 3 (1 and 0.707), b = 2, 4
    assert picks.vispruner(attention, features, 3) == [0, 2, 4]
    assert picks.vispruner(attention, features, 2) == [0, 4]  # and of 2, 4 the first
    assert picks.vispruner(attention, features, 4, important=0.25) == [0, 2, 3, 4]


def test_prumerge_by_hand():
    keys = np.array([[[0.0], [0.0], [0.0], [0.0], [math.log(6)]]])
    hidden = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    # attention is 0.1 but for the last, 0.6; everything else is dropped, and 0 lends its place
    slots, states = merges.prumerge(np.array([[1.0]]), keys, hidden, 3, neighbours=2)
    assert slots == [0, 4]
    np.testing.assert_allclose(states.ravel(), [1.0, 5.3])
    # one outlier in 5: step 5, every position but one in the way: 0, 1, 2, 3 by int(5 / 3) = 1; 3 of them within 4
    slots, _ = merges.prumerge(np.array([[1.0]]), keys, hidden, 4, plus=True)
    assert slots == [0, 1, 2, 4]
    assert merges.quantile([4, 1, 3, 2], 0.75) == 3.25 == np.quantile([1, 2, 3, 4], 0.75)


def test_tome_by_hand():
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0, 2.0], [-1, 0]])
    hidden = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    kept, states, sizes = merges.tome(features, hidden, 4)  # 2 is 3's double
    assert (kept, states.ravel().tolist(), sizes) == ([0, 1, 3, 4], [1, 2, 3.5, 5], [1, 1, 2, 1])
    kept, states, sizes = merges.tome(features, hidden, 1)
    assert sizes == [5.0]
    np.testing.assert_allclose(states, [[3.0]])


def test_hawk_by_hand():
    affinity = np.array([[[3.0, 0.0, 4.0], [3.0, 0.0, 4.0]], [[0.0, 100.0, 0.0], [0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(picks.hawk_score(affinity), [0.6, 1.0, 0.8])
    assert picks.hawk(affinity, 2) == [1, 2]
    assert picks.hawk(affinity, 1, weights=(2.0, 1.0)) == [2]


def test_nuwa_by_hand():
    coords = everything(2, 4).coords.numpy()
    attention = np.array([[0.9, 0.8, 0.1, 0.2, 0.7, 0.6, 0.3, 0.4]])
    assert picks.nuwa(attention, coords, 2) == [0, 7]
    assert picks.nuwa(attention, coords, 1) == [0]
    assert picks.nuwa(attention, coords, 4) == [0, 1, 4, 7]


def test_holov_by_hand():
    attention = np.array([[0.3, 0.2, 0.15, 0.15]])  # means of crops of two: 0.25 and 0.15
    assert picks.holov(attention, np.eye(4), 2, crops=2) == [0, 2]  # 1.25 and 0.75
    attention = np.array([[0.4, 0.5, 0.06, 0.05]])
    assert picks.holov(attention, np.eye(4), 1, crops=2) == [1]
    assert picks.holov(attention, np.eye(4), 3, crops=2) == [0, 1, 2]  # 2.67 and 0.33: the third finds no room
    assert [len(part) for part in picks.runs(11, 4)] == [3, 3, 3, 2]
    assert picks.runs(5, 2) == [[0, 1, 2], [3, 4]]


def test_hired_by_hand():
    view = [(0, r, c) for r in range(2) for c in range(4)]
    mosaic = [(1, r, c) for r in range(4) for c in range(4)]
    coords = np.array(view + mosaic)
    late = np.array([[*np.linspace(0.8, 0.1, 8), *np.linspace(0.1, 1.6, 16)]])
    early = np.zeros((1, 24))
    early[0, [2, 7]] = 1, 0.5  # the upper right quarter, and the lower right one
    kept = picks.hired(late, early, coords, 8, marks=0.25)
    assert kept == [0, 1, 2, 3, 8 + 6, 8 + 7, 8 + 14, 8 + 15]
    # as four stripes of the sequence: rows of half a cell's height are none; two stripes of a view of two rows are rows
    tiles = np.array([*view, *((1 + t, r, c) for t in range(2) for r in range(2) for c in range(4))])
    kept = picks.hired(late, early, tiles, 8, marks=0.25, tiles=(1, 2), stripes="reference")
    assert kept == [0, 1, 2, 3, 8 + 6, 8 + 7, 8 + 14, 8 + 15]
    kept = picks.hired(late, early, tiles, 8, marks=0.25, tiles=(1, 2))
    assert kept == [0, 1, 2, 3, 20, 21, 22, 23]  # both marks in the right half


def test_evs_by_hand():
    coords = everything(1, 2, 3).coords.numpy()
    features = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 1.0]])
    assert video.evs(features, coords, 1) == [0]
    assert video.evs(features, coords, 3) == [0, 1, 4]
    assert video.evs(features, coords, 4) == [0, 1, 3, 4]


def test_vidcom2_by_hand():
    coords = everything(1, 3, 1).coords.numpy()
    features = np.array([[1.0, 0], [7, 0], [0, 3]])  # of length 1, the third is alone
    assert video.vidcom2(features, coords, 1, channels=1.0) == [2]
    assert video.vidcom2(features, coords, 2, channels=1.0) == [0, 2]
    two = everything(1, 2, 2).coords.numpy()
    features = np.array([[1.0, 0], [2, 0], [3, 0], [0, 1]])  # the second frame has what is rare
    assert video.vidcom2(features, two, 3, channels=1.0) == [0, 2, 3]  # 0.75 and 2.25


# -- the rules --------------------------------------------------------------------------------------------------------


def test_visionzip():
    for tokens, keep in cases(ties=True):
        layer = tokens.tower[-2]
        seen = array(layer.attention), array(layer.keys), array(tokens.hidden), keep
        state = array(tokens.class_state)
        same_states("visionzip", tokens, keep, merges.visionzip(*seen, class_state=state))
        same_states("visionzip", without_class(tokens), keep, merges.visionzip(*seen))
        same_states("visionzip", tokens, keep, merges.visionzip(*seen), class_token=False)
        expected = merges.visionzip(*seen, class_state=state, contextual=0.4)
        same_states("visionzip", tokens, keep, expected, contextual=0.4)


def test_visionzip_splits_as_published():
    """192 = 162 + 30, 128 = 108 + 20, 64 = 54 + 10: the class token and patches, then contextual tokens."""
    tokens = everything(24, 24)
    pruner = make_pruner("visionzip")
    for keep, contextual in ((192, 30), (128, 20), (64, 10)):
        kept = pruner.select(tokens, keep)
        states = pruner.merge(tokens, kept)
        own = {tuple(state) for state in tokens.hidden.tolist()}
        untouched = [tuple(state) in own for state in states.tolist()]
        # a contextual token that nothing is like goes on as it is
        assert untouched[: keep - contextual] == [False] + [True] * (keep - contextual - 1)
        assert untouched[keep - contextual :].count(False) > contextual // 2
        assert torch.equal(states[0], tokens.class_state)


def test_fastervlm():
    for tokens, keep in cases(ties=True):
        expected = picks.fastervlm(array(tokens.tower[-2].attention), keep)
        same("fastervlm", tokens, keep, expected)
        same("fastervlm", without_class(tokens), keep, expected)


@pytest.mark.parametrize("important", [0.5, 0.25, 0.9])
def test_vispruner(important):
    for tokens, keep in cases(ties=True):
        expected = picks.vispruner(array(tokens.tower[-2].attention), array(tokens.features), keep, important)
        same("vispruner", tokens, keep, expected, important=important)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("neighbours", [32, 3])
def test_prumerge(plus, neighbours):
    name = "prumerge-plus" if plus else "prumerge"
    for tokens, keep in cases():
        sharp = tokens.tower[-1]
        for factor in (1.0, 3.0):  # few outliers, and many
            layer = TowerLayer(sharp.attention, sharp.keys, sharp.class_query * factor)
            seen = dataclasses.replace(tokens, tower={**tokens.tower, -1: layer})
            arrays = array(layer.class_query), array(layer.keys), array(tokens.hidden)
            expected = merges.prumerge(*arrays, keep, plus=plus, neighbours=neighbours)
            # One token in all leaves none for outliers beside that of the dropped, and all tokens leave none to drop if
            # steps of 1 add them all: what their states then are, the definition does not say.
            settled = keep > 1 and not (plus and keep == len(tokens))
            (same_states if settled else compare_slots)(name, seen, keep, expected, neighbours=neighbours)


def test_prumerge_needs_a_class_token():
    for name in ("prumerge", "prumerge-plus"):
        with pytest.raises(AdaptPruneError, match="fastervlm"):
            make_pruner(name).select(without_class(everything()), 5)


@pytest.mark.parametrize("crops", [16, 4, 5, 0])
def test_holov(crops):
    for tokens, keep in cases(seeds=1):
        expected = picks.holov(array(tokens.tower[-2].attention), array(tokens.features), keep, crops or None)
        same("holov", tokens, keep, expected, crops=crops)


@pytest.mark.parametrize("stripes", ["quadrants", "reference"])
@pytest.mark.parametrize("marks", [0.2, 0.5])
def test_hired(stripes, marks):
    for tokens, keep in cases([(1, 1, 1), (2, 5, 1), (6, 10, 1)], ties=True):
        arrays = [array(tokens.tower[number].attention) for number in (-2, 0)]
        same("hired", tokens, keep, picks.hired(*arrays, tokens.coords.numpy(), keep), stripes=stripes, marks=marks)
    for tokens, keep in cases([(2, 6, 5), (4, 4, 5), (4, 2, 5)], ties=True):  # two by two tiles
        arrays = [array(tokens.tower[number].attention) for number in (-2, 0)]
        expected = picks.hired(*arrays, tokens.coords.numpy(), keep, stripes=stripes, marks=marks, tiles=(2, 2))
        if stripes == "quadrants" or tokens.coords[-1, 1] == 3:
            same("hired", tokens, keep, expected, stripes=stripes, marks=marks)


@pytest.mark.parametrize("stripes", ["quadrants", "reference"])
def test_hired_of_all_tiles_put_together(stripes):
    for seed in range(4):
        both = everything(4, 20, 1, seed=seed)  # 80 tokens: a view of 4 x 4, and a mosaic of 8 x 8
        view, mosaic = everything(4, 4).coords, everything(8, 8).coords
        tokens = dataclasses.replace(both, coords=torch.cat([view, mosaic + torch.tensor([1, 0, 0])]))
        arrays = [array(tokens.tower[number].attention) for number in (-2, 0)]
        for keep in (1, 2, 5, 11, 23, 40, 60, 79, 80):
            expected = picks.hired(*arrays, tokens.coords.numpy(), keep, stripes=stripes)
            same("hired", tokens, keep, expected, stripes=stripes)


@pytest.mark.parametrize(("region", "per_region"), [(2, 1), (3, 1), (2, 2)])
def test_nuwa(region, per_region):
    for tokens, keep in cases(ties=True):
        arrays = array(tokens.tower[-2].attention), tokens.coords.numpy()
        expected = picks.nuwa(*arrays, keep, region, per_region)
        same("nuwa", tokens, keep, expected, region=region, per_region=per_region)


def test_tome():
    for tokens, keep in cases():
        slots, states, sizes = merges.tome(array(tokens.features), array(tokens.hidden), keep)
        kept = same_states("tome", tokens, keep, (slots, states))
        assert make_pruner("tome").weights(tokens, kept).tolist() == sizes


@pytest.mark.parametrize("weights", [None, (0.5, 0.0, -1.0, 2.0)])
def test_hawk(weights):
    for tokens, keep in cases():
        options = {} if weights is None else {"weights_of_heads": weights}
        same("hawk", tokens, keep, picks.hawk(array(tokens.affinity), keep, weights), **options)


def test_hawk_rounds_up():
    assert make_pruner("hawk", keep_ratio=0.25).counts(57, 32) == {0: 15}
    assert make_pruner("hawk", keep_ratio=0.25).counts(56, 32) == {0: 14}
    assert make_pruner("hawk", num_keep=5).counts(57, 32) == {0: 5}


NMS = [{}, {"distance_limit": 2.5, "distance_sigma": 6.0, "similarity_sigma": 0.3}, {"centre_sigma": 0.5}]


@pytest.mark.parametrize("options", NMS)
@pytest.mark.parametrize("cue", ["tower", "affinity"])
def test_adaptprune_encoder(cue, options):
    for tokens, keep in cases():
        tokens = dataclasses.replace(tokens, affinity=tokens.affinity.abs(), features=tokens.features[:, :2])
        seen = array(tokens.tower[-2].attention)
        score = picks.head_mean(seen) if cue == "tower" else picks.hawk_score(array(tokens.affinity))
        arrays = array(tokens.features), tokens.coords.numpy()
        same(
            "adaptprune-encoder",
            tokens,
            keep,
            picks.adaptprune_encoder(score, *arrays, keep, **options),
            cue=cue,
            **options,
        )


VIDEOS = [(1, 1, 2), (2, 2, 2), (1, 5, 3), (3, 3, 4), (2, 4, 7)]


def test_evs():
    for tokens, keep in cases(VIDEOS):
        same("evs", tokens, keep, video.evs(array(tokens.features), tokens.coords.numpy(), keep))


def test_evs_needs_two_frames():
    with pytest.raises(AdaptPruneError, match="divprune"):
        make_pruner("evs").select(everything(), 5)


@pytest.mark.parametrize("channels", [0.5, 1.0, 0.25])
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_vidcom2(channels, scale):
    for tokens, keep in cases([*VIDEOS, (1, 1, 1), (4, 5, 1)]):
        tokens = dataclasses.replace(tokens, features=tokens.features * scale)
        oracle = functools.partial(
            video.vidcom2, array(tokens.features), tokens.coords.numpy(), keep, channels=channels
        )
        kept = make_pruner("vidcom2", channels=channels).select(tokens, keep).tolist()
        frames = range(int(tokens.coords[-1, 0]) + 1)
        if kept != oracle():  # shares of frames saturate: which of two remainders is larger may hang on the last bit
            several = itertools.product((0.0, 1e-6), repeat=len(frames))
            nudged = (oracle(nudge=dict(zip(frames, steps, strict=True))) for steps in several)
            assert kept in nudged, f"{keep} of {len(tokens)}"
