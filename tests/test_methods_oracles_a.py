"""Rules keep what oracles keep that were written from the formulas alone: see tests/oracles."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from adaptprune import AdaptPruneError, VisualTokens, make_pruner
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


def seeds(shape: tuple[int, ...]) -> range:
    return range(2 if shape[0] * shape[1] * shape[2] <= 12 else 1)


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
    for seed in seeds(shape):
        tokens = everything(rows, columns, grids, heads, width, text, seed, **made)
        pruner, worth, number = make_pruner(name, **options), objective(tokens), len(tokens)
        picks = order(worth, number, range(number))
        for count in budgets(number):
            kept = picked(pruner, tokens, count)
            if kept != sorted(picks[:count]):
                assert explains(kept, worth, range(number), COARSE.get(name, 0.0)) is None, (seed, count, picks)


#: Numbers that go wrong where arithmetic is careless.
KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": lambda t: t.bfloat16(),
    "large": lambda t: t * 3e4,
    "far from 0": lambda t: t + 100,
    "one channel rules": lambda t: torch.cat([t[..., :1] * 1000, t[..., 1:]], dim=-1),
    "some are zero": lambda t: torch.cat([t[:2] * 0, t[2:-1], t[-1:] * 0]),
    "all are zero": torch.zeros_like,
}
STATES = ("hidden", "rotated_keys", "text_rotated_keys", "text_hidden", "previous_hidden", "final", "text_final")


def of_kind(tokens: VisualTokens, kind: str) -> VisualTokens:
    if kind == "some have left":
        return dataclasses.replace(tokens.subset(torch.arange(len(tokens))[1::2]), memo={})
    if kind == "twins":
        return dataclasses.replace(tokens.subset(torch.arange(len(tokens)) // 2), coords=tokens.coords, size=0)
    states = (*STATES, "features", "text", "projector_input")
    return dataclasses.replace(tokens, **{name: KINDS[kind](getattr(tokens, name)) for name in states})


@pytest.mark.parametrize("kind", [*KINDS, "some have left", "twins"])
@pytest.mark.parametrize(("name", "options", "objective", "made"), OBJECTIVES, ids=shown)
def test_rules_hold_for_numbers_of_every_kind(name, options, objective, made, kind):
    tokens = of_kind(everything(3, 4, 1, 5, 8, 5, seed=8, **made), kind)
    pruner, worth, number = make_pruner(name, **options), objective(tokens), len(tokens)
    for count in {1, number // 3, number // 2, number}:
        kept = picked(pruner, tokens, count)
        assert explains(kept, worth, range(number), COARSE.get(name, 0.0)) is None


@pytest.mark.parametrize("kind", [*KINDS, "some have left"])
def test_other_decoder_rules_hold_for_numbers_of_every_kind(kind):
    tokens = of_kind(everything(3, 4, 1, 5, 8, 5, seed=8), kind)
    for count in range(1, len(tokens) + 1):
        assert picked(make_pruner("dart"), tokens, count) == ranking.dart(tokens, count)
        vlm_pruner = make_pruner("vlm-pruner", pivots=2, batch=3)
        assert picked(vlm_pruner, tokens, count) == ranking.vlm_pruner(tokens, count, pivots=2, batch=3)
        kept, groups = ranking.sparsevlm(tokens, count, ranking.raters(tokens), recycle=0.9)
        sparsevlm = make_pruner("sparsevlm", recycle=0.9)
        assert picked(sparsevlm, tokens, count) == kept
        merged = sparsevlm.merge(what_it_asks_for(sparsevlm, tokens), torch.tensor(kept))
        assert merged.dtype == tokens.hidden.dtype
        expected = ranking.sparsevlm_states(tokens, kept, groups)
        np.testing.assert_allclose(merged.double(), expected, rtol=0.01 if kind == "bfloat16" else 1e-5, atol=1e-6)


@pytest.mark.parametrize("place", range(len(OBJECTIVES)))
def test_oracles_tell_rules_apart(place):
    """What one rule keeps, no other one would: rounding is no excuse for a wrong formula."""
    name, options, objective, made = OBJECTIVES[place]
    tokens = everything(4, 6, 1, heads=20, width=32, text=5, seed=2, **made)
    picks = order(objective(tokens), 12, range(24))
    for other, other_options, another, other_made in OBJECTIVES:
        if (other, other_options) != (name, options):
            worth = another(dataclasses.replace(tokens, layer=other_made.get("layer", 2)))
            slack = COARSE.get(other, 0.0)
            assert any(explains(picks[:count], worth, range(24), slack) for count in range(1, 13)), (
                other,
                other_options,
            )


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
    for seed in seeds(shape):
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
    for seed in seeds(shape):
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
    for seed in seeds(shape):
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


@pytest.mark.parametrize(
    ("name", "layers"),
    [("sparsevlm", (2, 6, 15)), ("pyramiddrop", (8, 16, 24)), ("v2drop", (2, 8, 16)), ("tops", (12, 24))],
)
def test_stages_are_those_of_a_decoder_of_32_layers_scaled(name, layers):
    refused = 0
    for chosen in (layers, tuple(layer - 1 for layer in layers), tuple(layer + 6 for layer in layers)):
        pruner = make_pruner(name, layers=chosen)
        for depth in [*range(2, 40), 48, 61, 80]:
            expected = ranking.stages(chosen, depth)
            if expected[-1] > depth - 1:
                refused += 1
                with pytest.raises(AdaptPruneError):
                    pruner.stages(depth)
            else:
                assert pruner.stages(depth) == ((0, *expected) if name == "tops" else tuple(expected)), (chosen, depth)
    assert refused


SIZES = [1, 2, 3, 10, 35, 36, 64, 100, 144, 250, 256, 575, 576, 577, 729, 1024, 2880]


def asked(sizes: list[int] = SIZES) -> list[tuple[int, int]]:
    """Sizes, and how many of them are asked for."""
    return [
        (size, count)
        for size in sizes
        for count in sorted({1, 2, 5, size // 9, size // 3, size // 2, size - 1})
        if 0 < count < size
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_counts_of_sparsevlm(version):
    name = {1: "sparsevlm", 2: "sparsevlm-v2"}[version]
    for published, counts in ranking.TABLES[version].items():
        assert tuple(make_pruner(name, num_keep=published).counts(576, 32).values()) == tuple(
            np.minimum.accumulate(counts)
        )
    for size, count in [*asked(), *((576, count) for count in range(1, 576))]:
        counts = make_pruner(name, num_keep=count).counts(size, 32)
        assert list(counts) == [2, 6, 15]
        assert list(counts.values()) == ranking.sparsevlm_counts(count, size, version), (size, count)
    assert set(make_pruner(name, keep_ratio=1.0).counts(576, 32).values()) == {576}


@pytest.mark.parametrize("name", ["pyramiddrop", "v2drop"])
@pytest.mark.parametrize("depth", [32, 28, 7])
def test_counts_in_a_geometric_row(name, depth):
    refused = 0
    for size, count in asked():
        pruner = make_pruner(name, num_keep=count)
        stages = pruner.stages(depth)
        expected = ranking.geometric_counts(count, size, stages, depth)
        if expected is None:
            refused += 1
            with pytest.raises(AdaptPruneError, match="layers"):
                pruner.counts(size, depth)
        else:
            assert pruner.counts(size, depth) == dict(zip(stages, expected, strict=True)), (size, count)
    assert refused
    assert make_pruner("pyramiddrop").counts(576, 32) == {8: 288, 16: 144, 24: 72}


@pytest.mark.parametrize("depth", [32, 28, 5])
def test_counts_of_tops(depth):
    for size, count in asked():
        pruner = make_pruner("tops", num_keep=count)
        stages = pruner.stages(depth)
        expected = ranking.tops_counts(count, size, stages[1:], depth)
        assert pruner.counts(size, depth) == dict(zip(stages, expected, strict=True)), (size, count)


@pytest.mark.parametrize("margin", [0.2, 0.0, 0.35, 1.0])
def test_counts_of_deft(margin):
    for size, count in asked():
        pruner = make_pruner("deft", num_keep=count, margin=margin)
        assert pruner.counts(size, 28) == dict(zip((0, 14), ranking.deft_counts(count, size, str(margin)), strict=True))


def test_divprune_rounds_its_count():
    pruner = make_pruner("divprune")
    assert pruner.keep_ratio == 0.098
    for size in (1, 5, 10, 16, 36, 100, 576, 577, 2880):
        assert list(pruner.counts(size, 32).values()) == [max(1, round(0.098 * size))]
    assert list(make_pruner("divprune:num_keep=7").counts(100, 32).values()) == [7]


@pytest.mark.parametrize("name", ["pyramiddrop", "v2drop"])
@pytest.mark.parametrize("option", ["keep_ratio", "num_keep"])
def test_what_a_refusal_names_is_the_least_that_works(name, option):
    for depth in (32, 28, 7):
        for size in (100, 576):
            with pytest.raises(AdaptPruneError) as refused:
                make_pruner(name, **{option: 0.001 if option == "keep_ratio" else 1}).counts(size, depth)
            least = re.findall(rf"{option}=([\d.]*\d)", str(refused.value))[-1]
            if option == "num_keep":
                make_pruner(name, num_keep=int(least)).counts(size, depth)
                with pytest.raises(AdaptPruneError):
                    make_pruner(name, num_keep=int(least) - 1).counts(size, depth)
            else:
                make_pruner(name, keep_ratio=float(least)).counts(size, depth)
