"""Rules keep what oracles keep that were written from the formulas alone: see tests/oracles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adaptprune import VisualTokens, make_pruner
from tests.oracles import diverse, ranking
from tests.oracles.cues import everything
from tests.oracles.picking import Objective, explains, order

#: Rows, columns, grids, instruction tokens, heads, channels of each token.
SHAPES = [
    (1, 1, 1, 1, 1, 4),
    (1, 2, 1, 2, 2, 8),
    (1, 7, 1, 4, 3, 6),
    (3, 4, 1, 1, 4, 8),
    (3, 3, 2, 7, 16, 64),
    (4, 7, 1, 3, 5, 64),
    (4, 6, 2, 5, 20, 16),
    (6, 10, 1, 6, 4, 8),
]
#: By rule and options: the objective, how the tokens are made, and how coarse the rule's arithmetic is.
OBJECTIVES: list[tuple[str, dict, Callable[[VisualTokens], Objective], dict]] = [
    ("divprune", {}, diverse.divprune, {}),
    ("cenprune", {}, diverse.cenprune, {}),
    ("cenprune", {"form": "dpp"}, lambda t: diverse.cenprune(t, "dpp"), {}),
    ("cenprune", {"form": "dpp", "sign": "positive"}, lambda t: diverse.cenprune(t, "dpp", "positive"), {}),
    ("cdpruner", {}, diverse.cdpruner, {}),
    ("cdpruner", {"sign": "positive"}, lambda t: diverse.cdpruner(t, "positive"), {}),
    ("otprune", {}, diverse.otprune, {}),
    ("scope", {}, diverse.scope, {}),
    ("scope", {"alpha": 2.5}, lambda t: diverse.scope(t, 2.5), {}),
    ("scope", {"alpha": 0.0}, lambda t: diverse.scope(t, 0.0), {"has_class": False}),
    ("eadp", {}, diverse.eadp, {}),
    ("eadp", {"beta": 2.0, "entropy_share": 0.7}, lambda t: diverse.eadp(t, 2.0, 0.7), {}),
    ("tops", {}, diverse.tops, {"layer": 0}),
    ("tops", {}, diverse.tops, {"layer": 12}),
    ("tops", {"alpha": 2.0, "coverage": 0.25}, lambda t: diverse.tops(t, 2.0, 0.25), {"layer": 0}),
    ("tops", {"alpha": 0.0, "coverage": 3.0}, lambda t: diverse.tops(t, 0.0, 3.0), {"layer": 24}),
    ("zooprune", {}, diverse.zooprune, {}),
    ("zooprune", {"directions": 3, "step": 0.3, "seed": 5}, lambda t: diverse.zooprune(t, 3, 0.3, 5), {}),
    ("pyramiddrop", {}, ranking.pyramiddrop, {"layer": 8}),
    ("v2drop", {}, ranking.v2drop, {}),
    ("deft", {}, ranking.deft, {"layer": 0}),
    ("deft", {}, ranking.deft, {"layer": 16}),
    ("priortr", {}, ranking.priortr, {"layer": 3}),
    ("priortr", {"prior": "last"}, lambda t: ranking.priortr(t, "last"), {"layer": 3}),
    ("sieve", {}, ranking.sieve, {}),
    ("sieve", {"heads": 2, "energy": 0.4}, lambda t: ranking.sieve(t, 2, 0.4), {}),
]
#: Those who call a projector in float32.
COARSE = {"zooprune": 1e-3}
#: Which fields of VisualTokens a cue fills.
FIELDS = {
    "rotated_keys": ("rotated_keys", "text_rotated_keys"),
    "final": ("final", "text_final"),
    "features": ("features", "text"),
    "projector": ("projector_input", "project"),
    "raw_keys": ("keys",),
    "previous_keys": ("keys",),
}


def shown(value: object) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "-"
    return value if isinstance(value, str) else None


def what_it_asks_for(pruner, tokens: VisualTokens) -> VisualTokens:
    """The tokens with nothing but the cues that the rule names."""
    cues = pruner.needs_at(tokens.layer, tokens.num_layers)
    known = {"hidden", "coords", "layer", "num_layers", "size", "memo"}
    for cue in cues:
        known |= set(FIELDS.get(cue, (cue,)))
    tower = {number: tokens.tower[number] for number in tokens.tower if f"tower:{number}" in cues}
    none = {f.name: None for f in dataclasses.fields(tokens) if f.name not in known}
    return dataclasses.replace(tokens, **{**none, "tower": tower, "memo": {}})


def budgets(number: int) -> list[int]:
    return (
        list(range(1, number + 1))
        if number <= 12
        else sorted({1, 2, 3, 5, number // 4, number // 2, number - 1, number})
    )


def picked(pruner, tokens: VisualTokens, count: int) -> list[int]:
    kept = pruner.select(what_it_asks_for(pruner, tokens), count)
    assert kept.dtype == torch.int64
    result = kept.tolist()
    assert result == sorted(set(result))
    assert len(result) == count
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize(("name", "options", "objective", "made"), OBJECTIVES, ids=shown)
def test_rules_pick_what_their_objective_says(name, options, objective, made, shape):
    rows, columns, grids, text, heads, width = shape
    for seed in range(2):
        tokens = everything(rows, columns, grids, heads, width, text, seed, **made)
        pruner, worth, number = make_pruner(name, **options), objective(tokens), len(tokens)
        picks = order(worth, number, range(number))
        for count in budgets(number):
            kept = picked(pruner, tokens, count)
            if kept != sorted(picks[:count]):
                assert explains(kept, worth, range(number), COARSE.get(name, 0.0)) is None, (seed, count, picks)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("sign", ["negative", "positive"])
def test_cdpruner_takes_as_many_from_both_halves(sign, shape):
    rows, columns, grids, text, heads, width = shape
    tokens = everything(rows, columns, grids, heads, width, text, seed=3)
    pruner = make_pruner("cdpruner", sign=sign, halves=True)
    for count in budgets(len(tokens)):
        kept = picked(pruner, tokens, count)
        for worth, members, share in diverse.cdpruner_halves(tokens, count, sign):
            own = [members.index(i) for i in kept if i in members]
            assert len(own) == share
            assert explains(own, worth, range(len(members))) is None


@pytest.mark.parametrize("shape", SHAPES[:5], ids=lambda s: "x".join(map(str, s)))
def test_zooprune_in_double_precision_to_the_last_digit(shape):
    rows, columns, grids, text, heads, width = shape
    tokens = everything(rows, columns, grids, heads, width, text)
    tokens = dataclasses.replace(tokens, projector_input=tokens.projector_input.double())
    worth = diverse.zooprune(tokens, directions=5)
    for count in budgets(len(tokens)):
        assert explains(picked(make_pruner("zooprune:directions=5"), tokens, count), worth, range(len(tokens))) is None


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("pivots", [(4, 4), (1, 3), (3, 1), (2, 0), (7, 7)])
def test_dart(pivots, shape):
    rows, columns, grids, text, heads, width = shape
    visual, words = pivots
    pruner = make_pruner("dart", pivots_visual=visual, pivots_text=words)
    for seed in range(2):
        tokens = everything(rows, columns, grids, heads, width, text, seed)
        for count in budgets(len(tokens)):
            assert picked(pruner, tokens, count) == ranking.dart(tokens, count, visual, words)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pivots": 1, "batch": 3},
        {"pivots": 6, "channels": 5, "batch": 1},
        {"channels": 3, "batch": 5, "threshold": 0.2, "threshold_step": 0.01},
        {"batch": 4, "threshold": 1.4, "threshold_step": 0.5},
    ],
    ids=shown,
)
def test_vlm_pruner(options, shape):
    rows, columns, grids, text, heads, width = shape
    for seed in range(2):
        tokens = everything(rows, columns, grids, heads, width, text, seed)
        for count in budgets(len(tokens)):
            kept = picked(make_pruner("vlm-pruner", **options), tokens, count)
            assert kept == ranking.vlm_pruner(tokens, count, **options), (seed, count)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("recycle", [0.3, 0.0, 1.0])
def test_sparsevlm_selects_and_recycles(recycle, version, shape):
    rows, columns, grids, text, heads, width = shape
    pruner = make_pruner({1: "sparsevlm", 2: "sparsevlm-v2"}[version], recycle=recycle)
    for seed in range(2):
        tokens = everything(rows, columns, grids, heads, width, text, seed)
        rated_by = ranking.raters(tokens)
        for count in budgets(len(tokens)):
            kept, groups = ranking.sparsevlm(tokens, count, rated_by, version, recycle)
            assert picked(pruner, tokens, count) == kept
            merged = pruner.merge(what_it_asks_for(pruner, tokens), torch.tensor(kept))
            expected = ranking.sparsevlm_states(tokens, kept, groups)
            assert merged.dtype == tokens.hidden.dtype
            np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_sparsevlm_asks_the_raters_of_its_first_stage(version):
    """At later ones some tokens have left, and the rest of them would choose others."""
    pruner = make_pruner({1: "sparsevlm", 2: "sparsevlm-v2"}[version])
    different = 0
    for seed in range(12):
        first = everything(4, 6, 1, 20, 16, 7, seed)
        rated_by = ranking.raters(first)
        kept = pruner.select(first, 9)
        later = dataclasses.replace(first.subset(kept), layer=6)
        assert pruner.select(later, 4).tolist() == ranking.sparsevlm(later, 4, rated_by, version)[0]
        different += ranking.raters(later) != rated_by
    assert different
