"""Rules side by side: `adaptprune compare`, its sheet and its page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.compare import compare, names_of, plan
from adaptprune.compare.page import page
from adaptprune.compare.sheet import WIDE, sheet
from adaptprune.engines.local import LocalEngine
from adaptprune.engines.sampling import Sampling
from adaptprune.prompts import question
from adaptprune.report import SampleReport
from adaptprune.viz import CELL, heat
from tests.commands import run_here
from tests.families import specimen


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *words: run_here(monkeypatch, capsys, "compare", *words)


@pytest.fixture
def one():
    return specimen("llava")


def test_answers_are_those_of_each_rule_alone(one):
    """And times are those of the counted rounds."""
    image = one.pictures(1)[0]
    rows = plan(["adaptprune", "fastv:layer=3", "pool"], 0.25, None, None)
    steps = []
    engine = LocalEngine(one.model, one.processor, explain=True)
    compare(engine, "w3 w4", [image], rows, Sampling(4, 0.0), rounds=2, on_step=lambda: steps.append(1))
    engine.close()
    assert [row.method for row in rows] == ["none", "adaptprune", "fastv:layer=3", "pool"]
    assert len(steps) == 4 * 3
    for row in rows:
        alone = LocalEngine(one.model, one.processor)
        assert row.answer.text == alone.ask(question("w3 w4", [image]), Sampling(4, 0.0), row.pruning).text
        alone.close()
        assert len(row.first_token_ms) == len(row.total_ms) == 2
        told = row.to_dict()["first_token_ms"]
        assert told["min"] <= told["median"] <= told["max"]
    assert [row.kept for row in rows] == [None, (4, 16), (4, 16), (4, 16)]
    assert rows[0].answer.heat is None
    assert rows[1].answer.heat is not None
    assert rows[3].answer.heat is None  # pooling ranks nothing


def test_a_rule_that_does_not_suit_has_its_reason_and_the_others_go_on():
    one = specimen("qwen3_vl")  # deepstack: no token can leave before layer 3
    rows = plan(["fastv:layer=1", "fastv:layer=3"], 0.25, None, None)
    engine = LocalEngine(one.model, one.processor, explain=True)
    compare(engine, "w3", one.pictures(1), rows, Sampling(2, 0.0), rounds=1)
    engine.close()
    assert "layer=1 is too early" in rows[1].error
    assert rows[2].error is None
    told = [row.to_dict() for row in rows]
    assert told[1]["answer"] is None
    assert told[1]["first_token_ms"] is None
    drawn = sheet(rows, "w3", one.pictures(1))
    assert drawn.width > 3 * WIDE
    assert "layer=1 is too early" in page(rows, "w3", one.pictures(1), "m")


def test_what_a_model_says_is_text(one):
    rows = plan(["random"], 0.5, None, None)
    engine = LocalEngine(one.model, one.processor)
    compare(engine, "w3", one.pictures(1), rows, Sampling(2, 0.0), rounds=1)
    engine.close()
    rows[1].answer.text = "<script>alert(1)</script>\n" + "long " * 2000
    made = page(rows, '<b>&"', one.pictures(1), "<i>model")
    assert "<script" not in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in made
    assert "&lt;b&gt;&amp;" in made
    assert "<i>" not in made
    assert 'src="http' not in made
    assert sheet(rows, "w3", one.pictures(1)).height < 3000


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["adaptprune,fastv"], ["adaptprune", "fastv"]),
        (["adaptprune:layer=1,keep_ratio=0.2,fastv"], ["adaptprune:layer=1,keep_ratio=0.2", "fastv"]),
        (["fastv", "none,random:seed=1"], ["fastv", "none", "random:seed=1"]),
        ([" fastv , ,grid "], ["fastv", "grid"]),
        (["v2drop:layers=(4,8),keep_ratio=0.5,grid"], ["v2drop:layers=(4,8),keep_ratio=0.5", "grid"]),
    ],
)
def test_names_by_commas(given, found):
    assert names_of(given) == found


def test_mistakes_are_found_before_anything_runs():
    with pytest.raises(AdaptPruneError, match="unknown method 'fastw'. Did you mean 'fastv'"):
        names_of(["adaptprune,fastw"])
    with pytest.raises(AdaptPruneError, match="'fastv' is given twice"):
        plan(["fastv", "fastv"], 0.1, None, None)


def test_the_map_goes_by_rank():
    """Of four tokens, in the colours of a ramp whose lightness rises; one without a rank has the lowest."""
    scores = [(0, 0, 0, 1e-9), (0, 0, 1, 5.0), (0, 1, 0, 1e-3), (0, 1, 1, float("nan"))]
    sample = SampleReport(num_visual=4, grids=[(0, 2, 2)], scores=scores)
    drawn = np.asarray(heat([Image.new("RGB", (2 * CELL, 2 * CELL), "grey")], sample)).astype(int)
    light = [drawn[row * CELL + 9, column * CELL + 9].sum() for row, column in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert light[3] == light[0] < light[2] < light[1]
    sample.scores = []
    assert heat([Image.new("RGB", (8, 8))], sample) is None


def test_command(run, tmp_path):
    pictures = [tmp_path / "sheet.png", tmp_path / "page.html"]
    files = ("--sheet", str(pictures[0]), "--page", str(pictures[1]))
    words = ("-i", "example:cloth", "-p", "What colour is the triangle?", "-m", "adaptprune,fastv", "random",
             "--keep-ratio", "0.1", "--rounds", "1")  # fmt: skip
    told = run(*words, *files)
    assert told.returncode == 0, told.stderr
    assert re.search(r"adaptprune .*orange .*57 of 576", told.stdout)
    assert Image.open(pictures[0]).width > 4 * WIDE
    written = pictures[1].read_text()
    assert written.startswith("<!doctype html>")
    assert "unpruned" in written
    assert "/assets" not in written  # no folder of this machine
    told = run(*words, "--json")
    found = json.loads(told.stdout)
    assert [row["method"] for row in found["rules"]] == ["none", "adaptprune", "fastv", "random"]
    assert found["rules"][1]["kept"] == 57
    assert found["rules"][1]["mean_kept"] == pytest.approx((2 * 576 + 4 * 57) / 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sheet", "a.jpg"), "the name has to end in .png"),
        (("--page", "nowhere/a.html"), "there is no folder"),
        (("--rounds", "0"), "rounds=0 is not allowed"),
        (("-m", "fastw"), "Did you mean 'fastv'"),
        (("--keep-ratio", "2"), "keep_ratio=2.0 is not allowed"),
        (("--keep-ratio", "0.1", "--num-keep", "3"), "two ways to say"),
    ],
)
def test_mistakes_in_the_command(run, words, said):
    told = run("-i", "example:cloth", "-p", "a", *words)
    assert told.returncode == 2
    assert said in told.stderr
    assert told.stderr.count("\n") == 1
