"""What holds for every rule of the registry, whatever it ranks tokens by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, Pruner, VisualTokens, make_pruner
from adaptprune.pruner import coordinate_tokens
from tests.oracles.cues import everything
from tests.oracles.visual import FIELDS, in_precision, mapped, only, tensors, watched

METHODS = adaptprune.list_methods()
LAYERS = 32
every_method = pytest.mark.parametrize("method", METHODS)

#: Rules that keep fewer than they were asked for where whole rows and columns of cells do not add up to it.
INEXACT = {"pool"}
#: Rules that one grid alone is refused by.
SEVERAL_GRIDS = {"evs"}
#: Rules that look at the order of tokens besides what they are and where: no other order has to give the same.
ORDERED = {
    "random": "draws places",
    "grid": "counts rows and columns off in the order of the sequence",
    "pool": "cells of the sequence",
    "visionzip": "contextual targets are every so many of the rest",
    "prumerge-plus": "adds every so many-th position",
    "tome": "even and odd places",
    "holov": "crops are runs of the sequence",
    "evs": "what is left of the first frame's budget goes to its first tokens: all of them rank alike",
}
#: Rules that rank by scores alone: of tokens that are all alike, the first are kept.
PLAIN = {"fastv", "fastervlm", "hawk", "priortr", "pyramiddrop", "v2drop", "deft"}


def merges(pruner: Pruner) -> bool:
    return type(pruner).merge is not Pruner.merge and not pruner.merges_beside


def grids_for(method: str, grids: int) -> int:
    return max(grids, 2) if method in SEVERAL_GRIDS else grids


def asked(count: int) -> tuple[int, ...]:
    return tuple(sorted({1, 2, 5, count // 2, count - 1, count} & set(range(1, count + 1))))


def check(pruner: Pruner, tokens: VisualTokens, number: int, keep: torch.Tensor) -> None:
    assert keep.dtype == torch.int64
    places = keep.tolist()
    assert places == sorted(set(places)), "ascending, no two alike"
    assert places
    assert 0 <= places[0] <= places[-1] < len(tokens)
    if pruner.adaptive or pruner.name in INEXACT:
        assert len(places) <= number
    else:
        assert len(places) == number
    merged, weights = pruner.merge(tokens, keep), pruner.weights(tokens, keep)
    assert merged.shape == (len(places), tokens.hidden.shape[1])
    assert merged.dtype == tokens.hidden.dtype
    assert merged.isfinite().all()
    assert weights.shape == keep.shape
    assert (weights > 0).all()


def staged(pruner: Pruner, tokens: VisualTokens, number: int | None = None) -> Iterator[tuple[VisualTokens, int]]:
    """What a rule sees at each of its stages, no more than the cues it names, and how many it is asked for.

    `number` at every stage, or what the rule itself plans. What it leaves for later stages is handed on.
    """
    counts = pruner.counts(len(tokens), LAYERS)
    assert tuple(counts) == pruner.stages(LAYERS)
    whole, memo = len(tokens), {}
    for layer, planned in counts.items():
        want = min(planned if number is None else number, len(tokens))
        tokens = dataclasses.replace(tokens, layer=layer, num_layers=LAYERS, size=whole, memo=memo)
        seen = only(tokens, pruner.cues(layer, LAYERS))
        yield seen, want
        keep = pruner.choose(seen, want)
        tokens = dataclasses.replace(tokens.subset(keep), hidden=pruner.merge(seen, keep))


def first_stage(pruner: Pruner, tokens: VisualTokens) -> VisualTokens:
    return next(staged(pruner, tokens))[0]


@every_method
@pytest.mark.parametrize(("rows", "columns", "grids"), [(1, 1, 1), (1, 2, 1), (4, 5, 1), (3, 4, 3), (2, 2, 5)])
def test_with_nothing_but_its_cues_a_rule_keeps_what_it_is_asked_for(method, rows, columns, grids):
    pruner = make_pruner(method)
    tokens = everything(rows, columns, grids_for(method, grids))
    for number in (*asked(len(tokens)), None):
        for seen, want in staged(pruner, tokens, number):
            check(pruner, seen, want, pruner.select(seen, want))


@every_method
def test_a_rule_looks_at_every_cue_that_it_asks_for(method):
    """Cues cost a model's arithmetic: none is captured for nothing."""
    pruner = make_pruner(method)
    for seen, want in staged(pruner, everything(4, 6, 2), None):
        looked: set[str] = set()
        for memo in (dict(seen.memo), {}):  # a stage at which nothing leaves is passed over, and leaves no memo
            notes = watched(dataclasses.replace(seen, memo=memo))
            pruner.merge(notes, pruner.select(notes, want))
            looked |= notes.looked
        for cue in pruner.cues(seen.layer, LAYERS):
            assert looked & {cue, *FIELDS.get(cue, ())}, f"{cue} at layer {seen.layer}"


@every_method
def test_of_all_tokens_all_are_kept(method):
    pruner = make_pruner(method)
    if pruner.adaptive:
        pytest.skip("it finds how many stay by itself")
    tokens = everything(grids=grids_for(method, 1))
    for seen, want in staged(pruner, tokens, len(tokens)):
        assert pruner.select(seen, want).tolist() == list(range(len(tokens)))


@every_method
def test_the_same_again_whatever_torchs_seed_and_nothing_is_written_to(method):
    pruner = make_pruner(method)
    for seen, want in staged(pruner, everything(5, 6, 2)):
        before = {name: tensor.clone() for name, tensor in tensors(seen).items()}
        once_more = dataclasses.replace(seen, memo=dict(seen.memo))
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = pruner.select(seen, want)
        merged, weights = pruner.merge(seen, first), pruner.weights(seen, first)
        assert torch.equal(torch.get_rng_state(), state), "draws from torch's global generator"
        torch.manual_seed(2)
        again = pruner.select(once_more, want)
        assert torch.equal(first, again)
        assert torch.equal(pruner.merge(once_more, again), merged)
        assert torch.equal(pruner.weights(once_more, again), weights)
        for name, tensor in tensors(seen).items():
            assert torch.equal(tensor, before[name]), f"{name} was written to"


@every_method
@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_tokens_that_are_all_alike(method, value):
    """Every cue constant, all zeros among them: nothing divides by what does not vary."""
    pruner = make_pruner(method)
    tokens = everything(4, 5, grids_for(method, 1))
    if value < 0:  # probabilities have no sign
        flat = mapped(tokens, lambda name, x: torch.full_like(x, value if name in {"hidden", "features"} else 0.01))
    else:
        flat = mapped(tokens, lambda _, x: torch.full_like(x, value))
    for number in (1, 7, len(flat) - 1):
        for seen, want in staged(pruner, flat, number):
            keep = pruner.select(seen, want)
            check(pruner, seen, want, keep)
            if method in PLAIN:
                assert keep.tolist() == list(range(want))


@every_method
def test_the_order_in_which_tokens_come_does_not_matter(method):
    if method in ORDERED:
        pytest.skip(ORDERED[method])
    pruner = make_pruner(method)
    tokens = everything(4, 6, 2, width=64, seed=3)  # more channels than tokens, or picks are of rounding errors
    for seen, planned in staged(pruner, tokens):
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(len(seen)))
        for want in {1, 3, planned}:
            plain, moved = (dataclasses.replace(x, memo=dict(seen.memo)) for x in (seen, seen.subset(order)))
            expected, found = pruner.select(plain, want), pruner.select(moved, want)
            assert sorted(order[found].tolist()) == expected.tolist()
            back = order[found].argsort()
            for what in (pruner.merge, pruner.weights):
                torch.testing.assert_close(what(moved, found)[back], what(plain, expected))


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(method, dtype):
    pruner = make_pruner(method)
    for seen, want in staged(pruner, in_precision(everything(12, 12, 2), dtype)):
        check(pruner, seen, want, pruner.select(dataclasses.replace(seen, memo=dict(seen.memo)), want))
        wide = mapped(seen, lambda _, x: x.float())
        for number in range(10, len(seen), 30) if seen.project is None else ():
            # of the same numbers, written in float32, it keeps the same
            kept = (pruner.select(dataclasses.replace(x, memo=dict(seen.memo)), number) for x in (seen, wide))
            assert torch.equal(*kept)


@every_method
def test_thousands_of_tokens(method):
    """An image of five tiles of 24 x 24, a tenth kept."""
    pruner = make_pruner(method)
    seen = first_stage(pruner, everything(24, 24, 5, text=8))
    check(pruner, seen, 288, pruner.select(seen, 288))


@every_method
def test_a_rules_spec_makes_it_again(method):
    for options in ({}, {"keep_ratio": 0.75}, {"num_keep": 7}, {"key_bias": 0.5, "positions": "packed"}):
        pruner = make_pruner(method, **options)
        assert make_pruner(pruner.spec()) == pruner
        assert make_pruner(pruner.spec()).spec() == pruner.spec()


@every_method
def test_coordinate_tokens_stay(method):
    usual = make_pruner(method)
    if type(usual).merge is not Pruner.merge and not usual.merges_beside:
        with pytest.raises(AdaptPruneError, match="does not go with .* merges all that it drops"):
            make_pruner(method, coordinate_tokens=0.05)
        return
    if merges(make_pruner(method)):  # a state made of several tokens has no one place
        with pytest.raises(AdaptPruneError, match="coordinate_tokens=0.05 does not go with"):
            make_pruner(method, coordinate_tokens=0.05)
        return
    pruner = make_pruner(method, coordinate_tokens=0.05)
    for seen, want in staged(pruner, everything(4, 6, 3), 30):
        assert seen.rotary is not None
        forced = coordinate_tokens(seen, 0.05).tolist()
        assert 1 <= len(forced) <= 6
        keep = pruner.choose(seen, want)
        check(pruner, seen, want, keep)
        assert set(forced) <= set(keep.tolist())


@every_method
def test_where_tokens_leave_is_where_the_rule_says(method):
    pruner = make_pruner(method)
    for layers in (LAYERS, 24, 28):
        stages, counts = pruner.stages(layers), pruner.counts(576, layers)
        assert stages == tuple(sorted(set(stages))) == tuple(counts)
        assert all(0 <= stage < layers for stage in stages)
        assert (stages[0] == 0) == (pruner.site in {"encoder", "both"}) or pruner.site == "any"
        kept = list(counts.values())
        assert all(1 <= few <= many <= 576 for many, few in zip([576, *kept], kept, strict=False))


@every_method
def test_it_says_what_it_is(method):
    pruner = make_pruner(method)
    assert pruner.name == method
    assert pruner.summary
    assert pruner.cost
    assert pruner.paper or pruner.site == "any"
