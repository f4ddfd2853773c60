"""Rules of the decoder's side, on examples small enough to be worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, VisualTokens, make_pruner
from adaptprune.cues import TowerLayer
from adaptprune.methods.sieve import suppressed
from adaptprune.ops.density_peaks import density_peaks
from tests.test_methods import tokens
from tests.tiny import CASES, IMAGE, LAYERS, RUN, llava

RULES = ["sparsevlm", "sparsevlm-v2", "pyramiddrop", "dart", "priortr", "sieve", "vlm-pruner", "v2drop", "deft"]


def line(count: int, **cues) -> VisualTokens:
    """Tokens of one row of a grid; states of width 1 unless told."""
    coords = torch.stack([torch.zeros(count), torch.zeros(count), torch.arange(count)], dim=1).long()
    given = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in cues.items()}
    return VisualTokens(**{"hidden": torch.zeros(count, 1), "coords": coords, "layer": 2, "num_layers": 32, **given})


# -- which ------------------------------------------------------------------------------------------------------------


def test_deft_ranks_by_the_tower_and_then_by_all_rows():
    tower = {-2: TowerLayer(torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.1, 0.4]]), torch.zeros(2, 3, 1))}
    rows = [[[0.1, 0.2, 0.0], [0.4, 0.1, 0.1]]]  # means 0.25, 0.15, 0.05; the last row alone has the same first
    seen = line(3, rows=rows, tower=tower)
    assert make_pruner("deft").select(dataclasses.replace(seen, layer=0), 2).tolist() == [1, 2]  # 0.2, 0.3, 0.3
    assert make_pruner("deft").select(dataclasses.replace(seen, layer=16), 2).tolist() == [0, 1]


def test_pyramiddrop_ranks_by_what_the_layer_will_attend_to():
    seen = line(4, next_attention=[[0.1, 0.4, 0.0, 0.2], [0.3, 0.1, 0.2, 0.2]])  # means 0.2, 0.25, 0.1, 0.2
    assert make_pruner("pyramiddrop").select(seen, 2).tolist() == [0, 1]


def test_v2drop_ranks_by_the_change():
    seen = line(3, hidden=[[3.0, 4.0], [9.0, 9.0], [0.0, 6.0]], previous_hidden=[[0.0, 0.0], [9.0, 8.0], [0.0, 0.0]])
    assert make_pruner("v2drop").score(seen).tolist() == [5, 1, 6]
    assert make_pruner("v2drop").select(seen, 2).tolist() == [0, 2]


def test_priortr_is_what_the_question_adds():
    seen = line(3, rows=[[[0.2, 0.2, 0.1], [0.0, 0.2, 0.3], [0.2, 0.4, 0.0]]])
    # Q = 2/5, 2/5, 1/5; the rows sum to 0.4, 0.8, 0.4, so P = 1/4, 1/2, 1/4
    expected = [0.25 * math.log(5 / 8), 0.5 * math.log(5 / 4), 0.25 * math.log(5 / 4)]
    assert make_pruner("priortr").score(seen).tolist() == pytest.approx(expected, abs=1e-7)
    # the last row: 1/3, 2/3, 0
    expected = [math.log(5 / 6) / 3, 2 * math.log(5 / 3) / 3, 0]
    assert make_pruner("priortr:prior=last").score(seen).tolist() == pytest.approx(expected, abs=1e-7)
    assert make_pruner("priortr").layer == 3
    with pytest.raises(AdaptPruneError, match="unknown prior='first'"):
        make_pruner("priortr:prior=first")


def test_priortr_of_one_word_has_nothing_to_compare():
    seen = line(5, rows=[[[0.1, 0.3, 0.2, 0.0, 0.4]]])
    assert make_pruner("priortr").score(seen).tolist() == [0] * 5
    assert make_pruner("priortr").select(seen, 2).tolist() == [0, 1]


def test_dart_takes_what_is_least_like_each_pivot():
    seen = line(
        6,
        rotated_keys=[[1.0, 1.0], [0.0, 1.0], [-3.0, 2.0], [2.0, 2.0], [0.0, 0.0], [1.0, 0.0]],  # L1: 2 1 5 4 0 1
        text_rotated_keys=[[1.0, 1.0], [0.0, -3.0]],
        final=[[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0]],
        text_final=[[-1.0, 0.0], [0.0, 5.0]],
    )
    pruner = make_pruner("dart:pivots_visual=1,pivots_text=1")
    # token 2 takes 1, the opposite; word 1 takes what the division leaves over, too: 4, the opposite, then 0
    assert pruner.select(seen, 4).tolist() == [0, 1, 2, 4]
    assert pruner.select(seen, 3).tolist() == [1, 2, 4]
    assert pruner.select(seen, 2).tolist() == [2, 4]  # 1 of 2 pivots is none each: the last has it
    assert pruner.select(seen, 1).tolist() == [2]
    assert make_pruner("dart").select(seen, 3).tolist() == [0, 2, 3]  # no more than the 4 pivots: the largest keys
    assert make_pruner("dart:pivots_text=0,pivots_visual=2").select(seen, 4).tolist() == [1, 2, 3, 4]
    for wrong in ("pivots_visual=0", "pivots_text=-1", "pivots_text=0.5"):
        with pytest.raises(AdaptPruneError, match=f"{wrong} is not allowed"):
            make_pruner(f"dart:{wrong}")


def test_sieve_discounts_what_the_text_says_and_what_is_kept():
    seen = line(
        4,
        hidden=[[3.0, 5.0], [1.0, 8.0], [3.0, 7.0], [5.0, 5.0]],
        text_hidden=[[2.0, 5.0], [0.0, 5.0]],  # centre (1, 5); around it +-(1, 0): sigma^2 = 2 and 0, lambda = 2
        rows=[[[9.0] * 4, [0.4, 0.1, 0.2, 0.35]], [[0.0] * 4, [0.0, 0.9, 0.0, 0.0]]],
    )
    # the ridge halves x: of (2,0) (0,3) (2,2) (4,0) are left (1,0) (0,3) (1,2) (2,0), in squares 1/4, 1, 5/8, 1/4
    pruner = make_pruner("sieve:heads=1")  # the first: 1.05 against 0.9
    expected = [0.16 / 4, 0.01, 0.04 * 5 / 8, 0.35**2 / 4]
    assert pruner.score(seen).tolist() == pytest.approx(expected, rel=1e-6)
    # token 0 leaves nothing of 3, and 4/5 of 2
    assert pruner.select(seen, 2).tolist() == [0, 2]
    assert pruner.select(seen, 3).tolist() == [0, 1, 2]
    assert make_pruner("sieve").select(seen, 1).tolist() == [1]  # both heads: 0.5 at token 1
    alone = dataclasses.replace(seen, text_hidden=torch.tensor([[1.0, 5.0]]))
    assert pruner.score(alone).tolist() == pytest.approx([0.16, 0.01, 0.04, 0.35**2], rel=1e-6)
    for wrong in ("heads=0", "energy=1.5"):
        with pytest.raises(AdaptPruneError, match=f"{wrong} is not allowed"):
            make_pruner(f"sieve:{wrong}")


@pytest.mark.parametrize("width", [1, 2, 3, 20])
def test_suppression_equals_the_plain_greedy(width):
    """However few are compared at first: of one dimension everything is suppressed by the first pick."""
    generator = torch.Generator().manual_seed(width)
    scores, residual = torch.rand(60, generator=generator).double(), torch.randn(60, width, generator=generator)
    unit = torch.nn.functional.normalize(residual.double(), dim=1)
    for count in (1, 2, 7, 30, 60):
        left, picks = scores.clone(), []
        for _ in range(count):
            free = [i for i in range(60) if i not in picks]
            picks.append(max(free, key=lambda i: (float(left[i]), -i)))
            left = left * (1 - (unit @ unit[picks[-1]]).square()).clamp_min(0)
        assert suppressed(scores, residual, count).tolist() == sorted(picks)


def test_vlm_pruner_prefers_the_near():
    sixty = math.sqrt(1 - 0.6**2)
    seen = line(
        4,
        hidden=[[1.0, 0.0], [0.6, sixty], [1.0, 0.1], [0.59, -math.sqrt(1 - 0.59**2)]],
        rotated_keys=[[5.0], [0.0], [0.0], [0.0]],
    )
    pruner = make_pruner("vlm-pruner:pivots=1,batch=1")
    # one cell of four is 6 of 24: 0.6 * (1 + 0.5 * 6 / 33.94) = 0.653; three: 0.59 * (1 + 0.5 * 18 / 33.94) = 0.746
    assert pruner.select(seen, 2).tolist() == [0, 1]
    apart = dataclasses.replace(seen, coords=torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]))
    assert pruner.select(apart, 2).tolist() == [0, 3]  # as far apart as can be, all: 0.59 is the least alike


def test_vlm_pruner_takes_only_what_is_below_its_threshold():
    angles = torch.tensor([0.0, 60.0, 37.0, -33.0]).deg2rad()
    seen = line(
        4,
        hidden=torch.stack([angles.cos(), angles.sin()], dim=1),
        coords=torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]),  # every likeness is 1.5 times the cosine
        rotated_keys=[[1.0], [0.0], [0.0], [0.0]],
    )
    # 0.75, 1.20, 1.26: one is below 0.8 and joins alone; to it, 2 is more alike (1.38) than 3 is to 0
    assert make_pruner("vlm-pruner:pivots=1,batch=2").select(seen, 3).tolist() == [0, 1, 3]
    # a threshold of 1.3 lets both join at once
    assert make_pruner("vlm-pruner:pivots=1,batch=2,threshold=1.3").select(seen, 3).tolist() == [0, 1, 2]


def test_vlm_pruner_starts_from_pivots_far_apart():
    seen = line(5, hidden=torch.eye(5), rotated_keys=[[-3.0, 3.0], [4.0, 0.0], [-3.0, 2.5], [5.0, 0.5], [0.0, 0.0]])
    # 0 has the largest L1 norm; (5, 0.5) is 8.4 away; then the nearest pivot of 4 is 4.2, of 1 1.1, of 2 0.5 away
    for count, picks in ((1, [0]), (2, [0, 3]), (3, [0, 3, 4])):
        assert make_pruner("vlm-pruner").select(seen, count).tolist() == picks


def test_vlm_pruner_looks_at_the_channels_that_vary():
    seen = line(3, hidden=[[9.0, 1.0], [9.0, 1.1], [9.0, -1.0]], rotated_keys=[[1.0], [0.0], [0.0]])
    coords = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 1]])
    seen = dataclasses.replace(seen, coords=coords)
    pruner = make_pruner("vlm-pruner:pivots=1,channels=1,threshold_step=0.5")
    assert pruner.select(seen, 2).tolist() == [0, 2]
    for wrong in ("pivots=0", "channels=0", "batch=0", "threshold=-1", "threshold_step=0"):
        with pytest.raises(AdaptPruneError, match=f"{wrong} is not allowed"):
            make_pruner(f"vlm-pruner:{wrong}")


# -- SparseVLM --------------------------------------------------------------------------------------------------------


def test_density_peaks():
    points = torch.tensor([[0.0], [1.0], [3.0], [10.0], [12.0]])
    # nearest other: 1, 1, 2, 2, 2, so log rho = -1, -1, -4, -4, -4; delta = 12 (the densest), 1, 2, 7, 2
    # log rho + log delta = 1.48, -1, -3.31, -2.05, -3.31
    for count, expected in ((1, [0]), (2, [0, 1]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        centres, member = density_peaks(points, count, neighbours=1)
        assert centres.tolist() == expected
        assert centres[member[centres]].tolist() == expected
    assert density_peaks(points, 3, neighbours=1)[1].tolist() == [0, 1, 1, 2, 2]
    wide = density_peaks(points * 1e3, 3, neighbours=1)  # rho itself would be 0 for all
    assert wide[0].tolist() == [0, 1, 3]  # and the lower indices would win
    assert density_peaks(points[:1], 1)[0].tolist() == [0]


def test_density_peaks_of_twins():
    centres, member = density_peaks(torch.ones(4, 3), 2)
    assert centres.tolist() == [0, 1]
    assert member.tolist() == [0, 1, 0, 0]


def rated(**more) -> VisualTokens:
    """20 tokens that look at the first of three words, which attends to them less and less."""
    falling = torch.linspace(0.2, 0.01, 20)
    hidden = torch.zeros(20, 1)
    hidden[7:11, 0] = torch.tensor([0.0, 1.0, 2.0, 10.0])
    return line(
        20,
        hidden=hidden,
        features=torch.tensor([[10.0, 0.0, 0.0]]).repeat(20, 1),
        text=torch.eye(3),
        rows=torch.stack([falling, falling.flip(0), torch.ones(20)])[None],
        **more,
    )


def test_sparsevlm_recycles_what_it_drops():
    seen, pruner = rated(), make_pruner("sparsevlm")
    assert pruner.raters(seen).tolist() == [0]
    # 12 are dropped, 4 of them clustered: of 0, 1, 2, 10 the three others are in the mean of squares 35, 27.7, 23 and
    # 81.7 away, so that 2 is the centre of the only cluster
    keep = pruner.select(seen, 8)
    assert keep.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert pruner.merge(seen, keep)[:, 0].tolist() == [0] * 7 + [13 / 4]
    assert make_pruner(pruner, recycle=0).select(seen, 8).tolist() == list(range(8))
    assert torch.equal(make_pruner(pruner, recycle=0).merge(seen, torch.arange(8)), seen.hidden[:8])
    assert pruner.select(seen, 1).tolist() == [0]  # no place is left for a cluster
    assert pruner.select(seen, 20).tolist() == list(range(20))
    assert pruner.positions == "packed"
    with pytest.raises(AdaptPruneError, match="recycle=2 is not allowed"):
        make_pruner("sparsevlm:recycle=2")


def test_sparsevlm_chooses_its_raters_once():
    seen, pruner = rated(), make_pruner("sparsevlm")
    pruner.select(seen, 8)
    later = dataclasses.replace(seen, features=seen.features.flip(1))  # these would be for the last word
    assert pruner.raters(later).tolist() == [0]
    assert pruner.raters(dataclasses.replace(later, memo={})).tolist() == [2]
    alone = dataclasses.replace(seen, text=torch.ones(1, 3), rows=seen.rows[:, :1], memo={})
    assert pruner.raters(alone).tolist() == [0]  # none is above the mean


def test_sparsevlm_v2_asks_the_heads_that_look():
    blind = torch.linspace(0.0, 0.1, 20)[None].repeat(3, 1)  # sums to 1, the others to 2.1
    seen = rated()
    seen = dataclasses.replace(seen, rows=torch.stack([blind, seen.rows[0]]))
    assert make_pruner("sparsevlm-v2:heads=1,recycle=0").select(seen, 3).tolist() == [0, 1, 2]
    both = make_pruner("sparsevlm-v2").score(seen)
    torch.testing.assert_close(both, seen.rows.double()[:, 0].mean(dim=0))
    with pytest.raises(AdaptPruneError, match="heads=0 is not allowed"):
        make_pruner("sparsevlm-v2:heads=0")


def test_sparsevlm_merges_beside_coordinate_tokens():
    """Those are set aside before the rest is chosen from, and keep their states."""
    cosine = torch.zeros(20, 2)
    cosine[19], cosine[18] = 1, 0.5
    seen = rated(rotary=(cosine, cosine))
    pruner = make_pruner("sparsevlm:coordinate_tokens=0.1")
    keep = pruner.choose(seen, 10)
    # of the other 18, 8 are kept and 10 dropped: 4 clustered
    assert keep.tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 18, 19]
    assert pruner.merge(seen, keep)[:, 0].tolist() == [0] * 7 + [13 / 4, 0, 0]


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("size", [1, 2, 5, 36])
@pytest.mark.parametrize("words", [1, 4])
@pytest.mark.parametrize("layer", [0, 2])
def test_degenerate_pictures(method, size, words, layer):
    seen = tokens(1, size)
    seen = dataclasses.replace(seen, layer=layer, rows=seen.rows[:, :words])
    for name in ("text", "text_hidden", "text_final", "text_rotated_keys"):
        seen = dataclasses.replace(seen, **{name: getattr(seen, name)[:words]})
    flat = dataclasses.replace(seen, memo={}, tower={-2: TowerLayer(torch.ones(3, size), torch.ones(3, size, 2))})
    for field in dataclasses.fields(VisualTokens):
        value = getattr(flat, field.name)
        if field.name != "coords" and isinstance(value, torch.Tensor):
            flat = dataclasses.replace(flat, **{field.name: torch.ones_like(value)})
    nothing = dataclasses.replace(flat, memo={}, hidden=flat.hidden * 0, final=flat.final * 0, rows=flat.rows * 0)
    for each in (seen, flat, nothing):
        for count in {1, size // 2 or 1, size}:
            pruner = make_pruner(method)
            keep = pruner.select(each, count)
            assert keep.dtype == torch.int64
            assert len(keep) == count
            assert keep.tolist() == sorted(set(keep.tolist()))
            assert torch.isfinite(pruner.merge(each, keep)).all()
            if each is not seen and method != "vlm-pruner":  # which goes by places, too
                assert keep.tolist() == list(range(count))


@pytest.mark.parametrize("method", ["sparsevlm", "sparsevlm-v2", "pyramiddrop", "v2drop"])
@torch.no_grad()
def test_staged_rules_on_a_model(method):
    """Tokens of two images leave at every stage, as many as the rule says."""
    model, inputs = llava(), CASES["two images"]()
    pruner = make_pruner(method, keep_ratio=0.5)
    with adaptprune.prune(model, pruner) as report:
        model(**inputs)
    counts = pruner.counts(RUN, LAYERS)
    words = int((inputs["input_ids"] != IMAGE).sum())
    expected, kept = [], RUN
    for layer in range(LAYERS):
        kept = counts.get(layer, kept)
        expected.append(words + 2 * kept)
    assert report.kv_lengths == expected
    assert len(set(counts.values())) == 3
