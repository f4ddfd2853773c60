"""The sweep over all model types: a sample of it, its list, and what it says of differences."""

from __future__ import annotations

import copy
import json

import pytest

from adaptprune.families import CHECKED, REFUSED, TYPES, outcomes
from adaptprune.hooks.seams.catalogue import image_text_types
from adaptprune.hooks.seams.versions import installed
from adaptprune.testing.shapes import NotBuilt, shape
from adaptprune.testing.zoo import FILES, model_type
from tools import sweep

KNOWN = outcomes.read()
same_release = pytest.mark.skipif(
    KNOWN["transformers"] != installed(), reason=f"the list is of transformers {KNOWN['transformers']}"
)
#: One of every kind; `make sweep` tries all.
SAMPLE = ("cosmos3_omni", "deepseek_ocr2", "dots3_note", "fuyu", "gemma4", "hy_v4_vl", "mistral_large4", "mllama",
          "muse_glimmer", "nemotron_h_omni", "qwen3_5", "qwen4_exp")  # fmt: skip


@same_release
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_as_expected(name):
    with sweep._quiet():
        assert sweep.outcome(name) == KNOWN["types"][name]


@same_release
def test_the_list_has_every_type_and_none_is_silent():
    assert sorted(KNOWN["types"]) == list(image_text_types())
    for name, row in KNOWN["types"].items():
        assert row["tier"] in ("tested", "checked", "refused"), name
        assert row["tier"] != "refused" or (row["detail"] == sweep.why_refused(name) and "{" not in row["detail"])


def test_the_list_and_the_tables_agree():
    tiers = {
        tier: {name for name, row in KNOWN["types"].items() if row["tier"] == tier} for tier in ("tested", "checked")
    }
    assert tiers["tested"] == {*TYPES} == {model_type(name) for names in FILES.values() for name in names}
    assert tiers["checked"] == {*CHECKED}
    assert not {*TYPES, *CHECKED} & {*REFUSED}
    assert len(TYPES) >= 40
    assert len(TYPES) + len(CHECKED) >= 60


def test_differences_are_told():
    found = copy.deepcopy(KNOWN["types"])
    assert sweep.differences(found, KNOWN["types"], whole=True) == []
    found["brand_new"] = found.pop("llava")
    found["qwen3_5"] = {"tier": "fails", "detail": "logits differ"}
    lines = sweep.differences(found, KNOWN["types"], whole=True)
    assert [line.split(":")[0] for line in lines] == ["brand_new", "qwen3_5", "llava"]
    assert "logits differ" in lines[1]
    assert "gone" in lines[2]
    del found["brand_new"]
    assert len(sweep.differences(found, KNOWN["types"], whole=False)) == 1


def test_a_type_that_nobody_has_built_is_no_success():
    with pytest.raises(NotBuilt, match="neither a row of these tables nor a specimen"):
        shape("vision-encoder-decoder")


def test_what_goes_wrong_is_an_outcome(monkeypatch):
    monkeypatch.setattr(sweep, "TOLERANCE", -1.0)
    with sweep._quiet():
        row = sweep.outcome("llava")
    assert row["tier"] == "fails"
    assert "differ from the oracle's" in row["detail"]
    monkeypatch.setattr(sweep, "_all_of", lambda *args: 1 / 0)
    assert sweep.outcome("llava") == {"tier": "fails", "detail": "ZeroDivisionError: division by zero"}


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", "no_such_type"])
    assert sweep.main() == 2
    assert "has no no_such_type" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["sweep", "llava"])
    monkeypatch.setattr(sweep, "outcome", lambda name: {"tier": "fails", "detail": "x"})
    assert sweep.main() == 1
    assert "llava: {" in capsys.readouterr().out
    monkeypatch.setattr(sweep, "outcome", lambda name: KNOWN["types"][name])
    assert sweep.main() == 0
    assert "all as expected" in capsys.readouterr().out


def test_writing_keeps_the_other_types(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["sweep", "llava", "--write"])
    monkeypatch.setattr(sweep, "FILE", tmp_path / "outcomes.json")
    monkeypatch.setattr(sweep, "outcome", lambda name: {"tier": "tested"})
    assert sweep.main() == 0
    found = json.loads((tmp_path / "outcomes.json").read_text())
    assert found["types"] == {**KNOWN["types"], "llava": {"tier": "tested"}}
    assert found["transformers"] == installed()
