"""The oracles themselves, on cases worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from adaptprune import VisualTokens
from adaptprune.cues import TowerLayer
from tests.oracles import diverse, picking, ranking
from tests.oracles.cues import everything

ROOT = math.sqrt(0.5)


def made(count: int, columns: int | None = None, **cues) -> VisualTokens:
    """Tokens of one grid with these cues; nested lists become float32 tensors."""
    columns = columns or count
    coords = torch.tensor([(0, i // columns, i % columns) for i in range(count)])
    tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in cues.items() if name != "tower"}
    tower = {-2: TowerLayer(torch.tensor([cues["tower"]]), torch.zeros(1, count, 1))} if "tower" in cues else {}
    return VisualTokens(**{"hidden": torch.zeros(count, 1), "coords": coords, **tensors, "tower": tower})


def all_picks(objective, count: int) -> list[int]:
    return picking.order(objective, count, range(count))


def at_angles(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees]


def test_every_cue_is_filled_and_of_its_shape():
    for has_class in (True, False):
        tokens = everything(3, 4, 2, heads=3, width=9, text=5, has_class=has_class)
        missing = [f.name for f in dataclasses.fields(tokens) if getattr(tokens, f.name) is None]
        assert missing == ([] if has_class else ["class_state"])
        assert tokens.rows.shape == tokens.affinity.shape == (3, 5, 24)
        assert (tokens.rows.sum(dim=-1) < 1).all()
        assert torch.equal(tokens.rows[:, -1], tokens.attention)
        assert torch.equal(tokens.project(tokens.projector_input), tokens.features)
        assert all(layer.has_class == has_class for layer in tokens.tower.values())
        part = tokens.subset(torch.tensor([1, 20]))
        assert (len(part), part.whole, part.rows.shape[-1]) == (2, 24, 2)
    assert torch.equal(everything(seed=4).hidden, everything(seed=4).hidden)
    assert not torch.equal(everything(seed=4).hidden, everything(seed=5).hidden)


def test_explains_accepts_what_rounding_allows_and_nothing_else():
    def objective(chosen):
        worth = np.array([1.0, 1.0 + 1e-12, 0.5, 0.7])
        return picking.bounded(worth)

    assert all_picks(objective, 4) == [1, 0, 3, 2]
    assert picking.explains([0], objective, range(4)) is None
    assert picking.explains([1], objective, range(4)) is None
    assert picking.explains([0, 1, 3], objective, range(4)) is None
    assert picking.explains([3], objective, range(4)) is not None
    assert picking.explains([0, 1, 2], objective, range(4)) is not None
    assert (
        picking.explains([2], lambda chosen: picking.bounded([0.0, 0.0, 0.0]), range(3)) is not None
    )  # exact: 0 first
    assert picking.explains([3], objective, range(4), relative=0.4) is None


def test_min_max_of_what_differs_by_rounding_has_no_bound():
    assert picking.min_max(np.array([2.0, 2.0])).tolist() == [0, 0]
    assert picking.min_max(np.array([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]
    assert np.isinf(picking.stretched(np.array([0.3, 0.1 + 0.2]))).all()
    assert (picking.stretched(np.array([0.3, 0.4])) < 1e-12).all()


def test_divprune_by_hand():
    # nearest neighbours: 0 and 10 degrees each other, 90 has 10 (1 - cos 80), 180 has 90 (1): the farthest of these
    assert all_picks(diverse.divprune(made(4, features=at_angles(0, 10, 90, 180))), 4) == [3, 0, 2, 1]
    assert all_picks(diverse.divprune(made(1, features=[[1.0]])), 1) == [0]


def test_determinant_by_hand():
    kernel = np.array([[4, 3.9, 0], [3.9, 4, 0], [0, 0, 1.0]])
    assert all_picks(picking.determinant(kernel), 3) == [0, 2, 1]  # 4 - 3.9^2 / 4 is less than 1
    worth, _ = picking.determinant(kernel)([0])
    np.testing.assert_allclose(worth[1:], [4 - 3.9**2 / 4, 1])


def test_cenprune_by_hand():
    # raw cosines 0, 0 and 1: tokens 0 and 1 are the same, 2 stands alone; centred, 2 points away from the others
    tokens = made(3, features=[[1.0, 0], [1, 0], [0, 1]])
    np.testing.assert_allclose(diverse.distinctiveness(picking.f64(tokens.features)), [-0.5, -0.5, 0])
    worth, _ = diverse.cenprune(tokens)([])
    assert worth.tolist() == [0, 0, 1]
    worth, _ = diverse.cenprune(made(3, features=at_angles(0, 60, 180)))([2])
    # g: -(cos 60 + cos 180) / 2 = .25, -(cos 60 + cos 120) / 2 = 0, .75
    np.testing.assert_allclose(worth[1], 0, atol=1e-15)
    assert 0.33 < worth[0] < 2 / 3


def test_relevance_by_hand():
    tokens = made(3, features=[[2.0, 0], [0, 3], [1, 1]], text=[[1.0, 0], [5, 0]])
    np.testing.assert_allclose(diverse.text_relevance(tokens, "negative"), [-1, 0, -ROOT], atol=1e-12)
    np.testing.assert_allclose(diverse.text_relevance(tokens, "positive"), [1, 0, ROOT], atol=1e-12)
    diagonal = np.diag(diverse.cdpruner_kernel(tokens, "positive"))
    np.testing.assert_allclose(diagonal, np.square([1 + 1e-6, 1e-6, ROOT + 1e-6]))
    tokens = made(5, features=at_angles(0, 20, 40, 60, 80), text=[[1.0, 0]])
    assert [(members, share) for _, members, share in diverse.cdpruner_halves(tokens, 3)] == [
        ([0, 1, 2], 2),
        ([3, 4], 1),
    ]


def test_otprune_by_hand():
    # columns (3, 4) / 5 and (0, 2) / 2: gram [[.36, .48], [.48, 1.64]]
    worth, _ = diverse.otprune(made(2, features=[[3.0, 0], [4, 2]]))([])
    np.testing.assert_allclose(worth, [1 + 0.01 * (0.36**2 + 0.48**2), 1 + 0.01 * (0.48**2 + 1.64**2)])


def test_scope_by_hand():
    tokens = made(3, features=[[1.0, 0], [1, 1], [-1, 0]], tower=[0.2, 0.1, 0.4])
    worth, _ = diverse.scope(tokens)([])
    np.testing.assert_allclose(worth, [0.2 * (1 + ROOT), 0.1 * (1 + ROOT), 0.4])  # negative cosines never count
    worth, _ = diverse.scope(tokens)([0])
    np.testing.assert_allclose(worth[1:], [0.1 * (1 - ROOT), 0.4])


def test_smoothing_by_hand():
    row = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 2]])
    np.testing.assert_allclose(diverse.smoothed(np.array([1.0, 0, 0, 7]), row), [4 / 6, 2 / 8, 0, 7])
    square = np.array([[0, y, x] for y in range(3) for x in range(3)])
    smooth = diverse.smoothed(np.eye(9)[4], square)
    np.testing.assert_allclose(smooth, np.array([1 / 9, 2 / 12, 1 / 9, 2 / 12, 4 / 16, 2 / 12, 1 / 9, 2 / 12, 1 / 9]))


def test_eadp_by_hand():
    # the first text token looks at one token alone, the second at all of them alike: only the first counts, twice
    tokens = made(3, features=[[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]], text=[[1.0, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(diverse.text_scores(tokens), [0, 1, 0.5])
    tokens = made(1, features=[[1.0]], text=[[1.0]])
    assert diverse.text_scores(tokens).tolist() == [0]
    similarity = np.array([[1, 0.9, 0], [0.9, 1, 0.4], [0, 0.4, 1]])
    assert all_picks(picking.coverage(similarity, np.array([1.0, 1, 1])), 3) == [1, 2, 0]
    worth, _ = picking.coverage(similarity, np.array([1.0, 1, 2]))([1])
    np.testing.assert_allclose([worth[0], worth[2]], [0.1, 1.2])


def test_tops_by_hand():
    # attention .5, .3, .2 (mean 1/3); after token 0: distances 1 and 1 - ROOT of tokens 1 and 2
    tokens = made(3, hidden=[[1.0, 0], [0, 1], [1, 1]], attention=[[0.5, 0.3, 0.2]])
    tokens = dataclasses.replace(tokens, layer=12)
    worth, _ = diverse.tops(tokens)([0])
    distance = np.array([1, 1 - ROOT])
    # what is covered anew: of token 1 by both, 1 and ROOT; of token 2 by itself, 1 - ROOT, and by token 1, nothing
    cover = np.array([1, ROOT + 1 - ROOT])
    expected = np.array([0.9, 0.6]) + 0.5 * distance / distance.mean() + cover / cover.mean()
    np.testing.assert_allclose(worth[1:], expected, rtol=1e-6)
    assert all_picks(diverse.tops(tokens), 3) == [0, 1, 2]


def test_zooprune_by_hand():
    # P(x) = x^2: the difference quotient along u is 2 x u, so a token's score is in proportion to its one entry
    tokens = dataclasses.replace(
        made(3, features=[[1.0, 0], [0, 1], [1, 1]]),
        projector_input=torch.tensor([[[3.0, 0]], [[1.0, 0]], [[2.0, 0]]], dtype=torch.float64),
        project=lambda patches: patches.flatten(1) ** 2,
    )
    scores = diverse.sensitivity(tokens, directions=8)
    np.testing.assert_allclose(scores / scores[1], [3, 1, 2])
    assert all_picks(diverse.zooprune(tokens), 3) == [0, 2, 1]  # .5 * (1 - ROOT), then 0


def test_sieve_by_hand():
    # text +-1 along the first axis about a centre of (0, 0, 1): energy 2, the first and only one; half of x stays
    tokens = made(
        3,
        hidden=[[2.0, 0, 1], [0, 3, 1], [2, 2, 1]],
        text_hidden=[[1.0, 0, 1], [-1, 0, 1]],
        rows=[[[9.0, 9, 9], [0.1, 0.2, 0.3]]],
    )
    visual, residual = ranking.sieve_residuals(tokens)
    np.testing.assert_allclose(visual, [[2, 0, 0], [0, 3, 0], [2, 2, 0]])
    np.testing.assert_allclose(residual, [[1, 0, 0], [0, 3, 0], [1, 2, 0]], atol=1e-12)
    worth, _ = ranking.sieve(tokens)([])
    np.testing.assert_allclose(worth, [0.01 * 0.25, 0.04, 0.09 * 5 / 8], rtol=1e-6)
    worth, _ = ranking.sieve(tokens)([2])
    np.testing.assert_allclose(worth[:2], [0.01 * 0.25 * 0.8, 0.04 * 0.2], rtol=1e-6)
    single = dataclasses.replace(tokens, text_hidden=tokens.text_hidden[:1])
    visual, residual = ranking.sieve_residuals(single)
    np.testing.assert_array_equal(visual, residual)


def test_rankings_by_hand():
    assert ranking.top([1.0, 3, 3, 2], 3) == [1, 2, 3]
    worth, _ = ranking.priortr(made(2, rows=[[[0.1, 0.3], [0.3, 0.1]]]), "last")([])
    np.testing.assert_allclose(worth, [0.75 * math.log(3), 0.25 * math.log(1 / 3)], rtol=1e-6)
    worth, _ = ranking.priortr(made(2, rows=[[[0.1, 0.3], [0.3, 0.1]]]))([])
    np.testing.assert_allclose(worth, [0.5 * math.log(2), 0.5 * math.log(2 / 3)], rtol=1e-6)
    moved, _ = ranking.v2drop(made(2, hidden=[[3.0, 4], [1, 1]], previous_hidden=[[0.0, 0], [1, 1]]))([])
    assert moved.tolist() == [5, 0]


def test_dart_by_hand():
    # the pivots are token 0 and the second word; token 0's most unlike is 3, and the word's, of the rest, is 1
    tokens = made(
        4,
        rotated_keys=[[9.0, -9], [1, 1], [2, 2], [3, 3]],
        text_rotated_keys=[[1.0], [-5.0]],
        final=at_angles(0, 40, 80, 120),
        text_final=at_angles(0, 120),
    )
    assert ranking.dart(tokens, 3, 1, 1) == [0, 1, 3]
    assert ranking.dart(tokens, 2, 2, 1) == [0, 3]
    assert ranking.dart(tokens, 2, 1, 1) == [0, 1]  # (2 - 1) // 2 for the first pivot, and the last fills up


@pytest.mark.parametrize(("threshold", "third"), [(0.9, 2), (0.1, 3)])
def test_vlm_pruner_by_hand(threshold, third):
    # a row of four is 24 cells wide: steps of 6, factors 1 + .5 * (6, 12, 18) / (24 sqrt 2) = 1.09, 1.18, 1.27
    keys = [[9.0], [1], [2], [-3]]
    hidden = [[1.0, 0, 0], [0.05, 1, 0], [0.14, 1, 0], [0.18, 0, 1]]
    tokens = made(4, rotated_keys=keys, hidden=hidden)
    # like token 0 are .05, .16 and .22; like token 1 then are 1.08 (token 2) and .01
    kept = ranking.vlm_pruner(tokens, 3, pivots=1, batch=2, threshold=threshold)
    assert kept == [0, 1, third]
    assert ranking.vlm_pruner(tokens, 2, pivots=2) == [0, 3]  # keys 9 and -3
    # all in all token 2 is less like token 0 (.11 against .25); in the channel that varies most, token 1 is (-1 and 1)
    tokens = made(3, rotated_keys=keys[:3], hidden=[[5.0, 1], [4, -9], [-1, 9]])
    assert ranking.vlm_pruner(tokens, 2, pivots=1, channels=2) == [0, 2]
    assert ranking.vlm_pruner(tokens, 2, pivots=1, channels=1) == [0, 1]


def test_density_peaks_by_hand():
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]])
    groups = ranking.density_peaks(points, 2, nearest=1)
    # densities exp(-.01) for the first five; of equals the first is the densest, and farthest from all: 9; then 3
    assert groups == {0: [0, 1, 2], 3: [3, 4, 5]}
    assert ranking.density_peaks(points[:1], 1) == {0: [0]}


def test_sparsevlm_by_hand():
    tokens = made(2, features=[[1.0, 0], [1, 0]], text=[[3.0, 0], [0, 1]], rows=[[[0.1, 0.3], [0.9, 0.1]]])
    assert ranking.raters(tokens) == [0]
    np.testing.assert_allclose(ranking.sparsevlm_scores(tokens, [0]), [0.1, 0.3], rtol=1e-6)
    same = dataclasses.replace(tokens, text=tokens.text[:1])
    assert ranking.raters(same) == [0]
    # 14 heads have mass 3, the other two less
    rows = torch.ones(16, 1, 3)
    rows[4] = rows[9] = 0.5 * torch.tensor([1.0, 0.0, 0.0])
    many = made(3)
    many = dataclasses.replace(many, rows=rows)
    assert ranking.sparsevlm_scores(many, [0], 2).tolist() == [1, 1, 1]
    assert ranking.sparsevlm_scores(many, [0], 1)[1] == 14 / 16


def test_counts_by_hand():
    assert ranking.stages((2, 6, 15), 32) == [2, 6, 15]
    assert ranking.stages((2, 6, 15), 4) == [1, 2, 3]
    assert ranking.stages((8, 16, 24), 28) == [7, 14, 21]
    assert ranking.sparsevlm_counts(192, 576) == [300, 200, 110]
    assert ranking.sparsevlm_counts(160, 576) == [301, 155, 73]  # halfway: 301.5, 155, 73
    assert ranking.sparsevlm_counts(32, 576, 2) == [33, 17, 10]
    assert ranking.sparsevlm_counts(384, 1152) == [600, 400, 220]
    assert ranking.geometric_counts(270, 576, (8, 16, 24), 32) == [288, 144, 72]
    assert ranking.geometric_counts(144, 577, (8, 16, 24), 32) is None
    assert ranking.tops_counts(38, 576, (12, 24), 32) == [64, 32, 8]  # (64 * 12 + 32 * 12 + 8 * 8) / 32
    assert ranking.deft_counts(10, 45) == [17, 10]  # .2 * 35 is 7, not a little more
