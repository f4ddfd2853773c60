"""What every rule before the decoder and for video holds: any number of any grids, ties, precision, options."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from adaptprune import AdaptPruneError, make_pruner
from adaptprune.methods import METHODS
from tests.encoder_tokens import many

RULES = [
    "visionzip",
    "fastervlm",
    "vispruner",
    "prumerge",
    "prumerge-plus",
    "holov",
    "hired",
    "nuwa",
    "tome",
    "hawk",
    "adaptprune-encoder",
    "evs",
    "vidcom2",
]
MERGE = {"visionzip", "prumerge", "prumerge-plus", "tome"}


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("alike", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("grids", [[(1, 1)], [(1, 2)], [(3, 5)], [(2, 2), (4, 4)], [(3, 3)] * 4], ids=str)
def test_any_number_of_any_grids(method, alike, grids):
    seen, rule = many(*grids, alike=alike), make_pruner(method)
    if method == "evs" and len(grids) == 1:
        with pytest.raises(AdaptPruneError, match="divprune"):
            rule.select(seen, 1)
        return
    for number in range(1, len(seen) + 1):
        keep = rule.select(seen, number)
        assert keep.dtype == torch.int64
        assert (keep.diff() > 0).all()
        assert 0 <= keep[0] <= keep[-1] < len(seen)
        assert len(keep) == number or (rule.adaptive and 1 <= len(keep) < number)
        states = rule.merge(seen, keep)
        assert states.shape == (len(keep), 6)
        assert torch.isfinite(states).all()
        assert method in MERGE or torch.equal(states, seen.hidden[keep])


@pytest.mark.parametrize("method", RULES)
def test_half_precision_goes_in_and_comes_out(method):
    seen, rule = many((3, 3), (3, 3), dtype=torch.bfloat16), make_pruner(method)
    keep = rule.select(seen, 5)
    wide = dataclasses.replace(seen, features=seen.features.float(), hidden=seen.hidden.float())
    assert torch.equal(keep, rule.select(wide, 5))
    assert rule.merge(seen, keep).dtype == torch.bfloat16


@pytest.mark.parametrize("method", RULES)
def test_they_say_what_they_are(method):
    kind, rule = METHODS.get(method), make_pruner(method)
    assert (kind.name, kind.site, rule.layer) == (method, "encoder", 0)
    assert kind.summary
    assert kind.paper
    assert kind.adaptive == method.startswith("prumerge")
    assert rule.smallest_layer == 0


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("visionzip:contextual=1.5", "contextual=1.5"),
        ("vispruner:important=-0.1", "important=-0.1"),
        ("prumerge:neighbours=-1", "neighbours=-1"),
        ("prumerge-plus:neighbours=2.5", "neighbours=2.5"),
        ("holov:crops=-1", "crops=-1"),
        ("hired:marks=2", "marks=2"),
        ("hired:stripes=quadrant", "stripes='quadrant'"),
        ("nuwa:region=0", "region=0"),
        ("nuwa:per_region=0", "per_region=0"),
        ("adaptprune-encoder:cue=text", "cue='text'"),
        ("adaptprune-encoder:similarity_sigma=0", "similarity_sigma=0"),
        ("vidcom2:channels=0", "channels=0"),
        ("vidcom2:channels=1.5", "channels=1.5"),
    ],
)
def test_options_are_checked(spec, named):
    with pytest.raises(AdaptPruneError, match=named):
        make_pruner(spec)
