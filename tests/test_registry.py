"""Names, entry points of other packages, and spec strings."""

from __future__ import annotations

import importlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptprune import AdaptPruneError
from adaptprune.registry import Registry, parse_spec


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("fastv", "fastv", {}),
        (" fastv : keep_ratio = 0.1 , layer = 2 ", "fastv", {"keep_ratio": 0.1, "layer": 2}),
        ("a:b=text,c=True,d=None,e='x'", "a", {"b": "text", "c": True, "d": None, "e": "x"}),
        ("a:", "a", {}),
    ],
)
def test_specs(spec, name, options):
    assert parse_spec(spec) == (name, options)


@pytest.mark.parametrize("spec", ["a:b", "a:b=", "a:=1", "a:b=1,c"])
def test_specs_that_cannot_be_read(spec):
    with pytest.raises(AdaptPruneError, match="cannot read .* write it as name:option=value"):
        parse_spec(spec)


def test_an_option_given_twice():
    with pytest.raises(AdaptPruneError, match="'b' is given twice"):
        parse_spec("a:b=1,b=2")


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        name, options = parse_spec(text)
    except AdaptPruneError:
        return
    assert ":" not in name
    assert all(isinstance(key, str) and key for key in options)


def test_lazy_names_and_suggestions():
    registry = Registry("thing", {"pretty": "pprint:pformat", "broken": "no_such_module:x"}, group="adaptprune.none")
    assert registry.names() == ["pretty", "broken"]
    assert registry.get("pretty")([1]) == "[1]"
    with pytest.raises(AdaptPruneError, match="thing 'broken' cannot be imported from 'no_such_module:x': ModuleNotF"):
        registry.get("broken")
    with pytest.raises(
        AdaptPruneError, match=r"unknown thing 'prety'. Did you mean 'pretty'\? Allowed: broken, pretty."
    ):
        registry.get("prety")
    with pytest.raises(AdaptPruneError, match=r"unknown thing 'zzz'. Allowed"):
        registry.get("zzz")


def test_another_package_adds_a_method(tmp_path, monkeypatch):
    """A distribution with an entry point is found without being imported by us."""
    (tmp_path / "first_rows.py").write_text(
        "import torch\nfrom dataclasses import dataclass\nfrom adaptprune import Pruner\n"
        "@dataclass(frozen=True)\nclass First(Pruner):\n    name = 'first'\n"
        "    def select(self, tokens, num_keep):\n        return torch.arange(num_keep)\n"
    )
    info = tmp_path / "first_rows-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adaptprune.methods]\nfirst = first_rows:First\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry = Registry("method", {}, group="adaptprune.methods")
    assert registry.names() == ["first"]
    assert "first_rows" not in sys.modules
    pruner = registry.get("first")(keep_ratio=0.25)
    assert pruner.select(None, 3).tolist() == [0, 1, 2]
    monkeypatch.delitem(sys.modules, "first_rows")
