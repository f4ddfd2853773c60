"""`adaptprune doctor`: says what works with the installed transformers, and never that something does that does not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import adaptprune
from adaptprune import AdaptPruneError
from adaptprune.cli import main
from adaptprune.doctor import examine, works
from adaptprune.families import FAMILIES, TYPES, family_of, missing, since
from adaptprune.families.llava import Llava
from adaptprune.hooks.seams import SEAMS, versions
from adaptprune.hooks.seams.catalogue import image_text_types
from adaptprune.hooks.seams.versions import reaches
from adaptprune.methods.adaptprune import AdaptPrune
from adaptprune.testing import selfcheck, zoo

ROOT = Path(__file__).parent.parent
FEW = ("llava", "qwen3_vl", "paligemma")


@pytest.fixture
def few(monkeypatch):
    """Three families only, so that this is quick."""
    monkeypatch.setattr(zoo, "SPECIMENS", {name: zoo.SPECIMENS[name] for name in FEW})
    monkeypatch.setattr(FAMILIES, "_targets", {name: FAMILIES.get(name) for name in FAMILIES.names() if name in FEW})


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaptprune", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def altered(monkeypatch, name, change):
    """Let a specimen be built with a change to it."""
    build = zoo.SPECIMENS[name]

    def built(attention):
        one = build(attention)
        change(one.model)
        return one

    monkeypatch.setitem(zoo.SPECIMENS, name, built)


def other_layers(model):
    """As if a release had given layers other arguments."""
    for layer in model.model.language_model.layers:
        kind = type(layer)
        layer.__class__ = type(
            kind.__name__, (kind,), {"forward": lambda self, states, **rest: super(type(self), self).forward(states)}
        )


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
def test_everything_as_json(doctor):
    code, out, err = doctor("doctor", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["transformers"] == {
        "installed": versions.installed(),
        "window": [versions.OLDEST, versions.NEWEST],
        "tested": versions.is_tested(),
        "judgement": versions.judgement(),
    }
    assert [model["name"] for model in found["models"]] == list(FEW)
    for model in found["models"]:
        assert (model["status"], model["errors"], model["detail"]) == ("ok", {}, "")
        assert 0 < model["deviation"] <= selfcheck.TOLERANCE
        assert model["seconds"] > 0
        assert set(model["seams"]) == {"sdpa", "eager"}
    assert found["models_skipped"] is None
    assert list(found["seams"]) == [seam.name for seam in SEAMS]
    assert found["seams"]["attention"]["found"] == {
        "AttentionInterface, sdpa": list(FEW),
        "AttentionInterface, eager": list(FEW),
    }
    assert {who for seam in found["seams"].values() for names in seam["found"].values() for who in names} == set(FEW)


@pytest.mark.usefixtures("few")
def test_as_a_table(doctor):
    code, out, err = doctor("doctor")
    assert (code, err) == (0, "")
    assert versions.judgement() in out
    assert out.strip().endswith("3 of 3 models work")
    for seam in SEAMS:
        assert f"│ {seam.name}" in out


@pytest.mark.usefixtures("few")
def test_a_seam_that_one_family_does_not_have(doctor, monkeypatch):
    altered(monkeypatch, "qwen3_vl", other_layers)
    code, out, _ = doctor("doctor", "--json")
    llava, qwen, paligemma = json.loads(out)["models"]
    assert code == 1
    assert (llava["status"], qwen["status"], paligemma["status"]) == ("ok", "failed", "ok")
    for text in (qwen["errors"]["sdpa"], qwen["errors"]["eager"]):
        assert text.startswith("AdaptPruneError: a layer's arguments: ")
        assert f"the installed {versions.installed()}" in text
    code, out, _ = doctor("doctor")
    assert code == 1
    assert out.count("FAILED") == 1
    assert out.count("qwen3_vl: (sdpa, eager) AdaptPruneError: a layer's arguments: ") == 1
    assert out.strip().endswith("2 of 3 models work, 1 failed")


@pytest.mark.usefixtures("few")
def test_what_fails_with_one_implementation_only_says_with_which(doctor, monkeypatch):
    build = zoo.SPECIMENS["llava"]
    monkeypatch.setitem(zoo.SPECIMENS, "llava", lambda attention: build(attention) if attention == "eager" else 1 / 0)
    code, out, _ = doctor("doctor")
    assert code == 1
    assert "llava: (sdpa) ZeroDivisionError: division by zero" in out


def test_without_the_models(doctor):
    code, out, _ = doctor("doctor", "--json", "--no-models")
    found = json.loads(out)
    assert code == 0
    assert (found["models"], found["models_skipped"]) == (None, "--no-models was given")


@pytest.mark.parametrize(
    ("release", "text"),
    [
        ("5.16.0", "not tested: older than 5.16.1"),
        ("4.57.3", "not tested: older than 5.16.1"),
        ("5.16.1", "in the tested window 5.16.1 to 5.24"),
        ("5.24.7", "in the tested window 5.16.1 to 5.24"),
        ("5.25.0", "not tested: newer than 5.24"),
        ("5.25.0.dev0", "not tested: newer than 5.24"),
        ("6.0.0", "not tested: newer than 5.24"),
        ("5.24.0rc1", "not tested: no final release"),
        ("none", "not installed"),
    ],
)
def test_the_judgement_on_a_release(release, text, monkeypatch):
    monkeypatch.setattr(versions, "OLDEST", "5.16.1")
    monkeypatch.setattr(versions, "NEWEST", "5.24")
    assert versions.judgement(release) == text


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("release", "text"), [("9.1.0", "not tested: newer than"), ("4.1.0", "not tested: older than")]
)
def test_an_untested_release_is_judged_by_what_works(doctor, monkeypatch, release, text):
    monkeypatch.setattr(versions, "installed", lambda: release)
    code, out, _ = doctor("doctor")
    assert code == 0
    assert text in out
    assert "look at the table of models below" in out
    assert "and the models are not checked" in doctor("doctor", "--no-models")[1]


# -- each check can fail -----------------------------------------------------------------------------------------------


def errors(name="llava"):
    outcome = selfcheck.check(name)
    assert outcome.status == "failed"
    assert set(outcome.errors) == {"sdpa", "eager"}
    (text,) = {text.split(" by ")[0] for text in outcome.errors.values()}
    return text


def test_a_model_that_answers_differently_every_time(monkeypatch):
    def noisy(model):
        model.lm_head.register_forward_hook(lambda module, args, out: out + torch.rand_like(out))

    altered(monkeypatch, "llava", noisy)
    assert errors() == "keep_ratio=1 changes the answer: logits differ"


def test_pruning_that_computes_something_else(monkeypatch):
    monkeypatch.setattr(AdaptPrune, "merge", lambda self, tokens, keep: 1.01 * tokens.hidden[keep])
    assert errors() == "logits differ from the mask oracle's"
    monkeypatch.setattr(AdaptPrune, "merge", lambda self, tokens, keep: float("nan") * tokens.hidden[keep])
    assert errors() == "logits differ from the mask oracle's"
    assert selfcheck.check("llava").deviation is None  # NaN is not JSON


def test_an_oracle_that_hides_nothing(monkeypatch):
    monkeypatch.setattr(selfcheck, "hiding", lambda *_, **__: nullcontext())
    assert errors().startswith("the mask oracle hid nothing")


def test_too_few_tokens_kept(monkeypatch):
    select = AdaptPrune.select
    monkeypatch.setattr(AdaptPrune, "select", lambda self, tokens, count: select(self, tokens, count - 1))
    assert "tokens were kept in place of" in errors()


@pytest.mark.parametrize(("reported", "held", "total"), [(5, 8, 10), (4, 9, 10), (4, 8, 11)])
def test_a_cache_that_holds_something_else(reported, held, total):
    """A prompt of 7 tokens of which 3 were dropped; three more words were read since."""

    def look(reported, held, total):
        layer = SimpleNamespace(keys=torch.zeros(1, 1, held, 1), get_seq_length=lambda: total)
        inputs = {"input_ids": torch.ones(1, 7), "attention_mask": torch.ones(1, 7)}
        report = SimpleNamespace(kv_lengths=[reported])
        selfcheck._check_cache(SimpleNamespace(layers=[layer]), inputs, 0, [[1, 2, 3]], report)

    look(4, 4 + 3, 7 + 3)
    with pytest.raises(selfcheck.Wrong, match="the KV cache's layer 0 holds"):
        look(reported, held, total)
    with pytest.raises(selfcheck.Wrong, match="no KV cache"):
        selfcheck._check_cache(None, {}, 0, [], None)


def test_it_leaves_everything_as_it_was(capsys, monkeypatch):
    def loud(model):
        print("hello")
        warnings.warn("hello", stacklevel=1)
        logging.getLogger("transformers").error("hello")

    altered(monkeypatch, "llava", loud)
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selfcheck.check("llava").errors == {}
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert logging.root.manager.disable == logging.NOTSET
    assert torch.is_grad_enabled()
    assert capsys.readouterr() == ("", "")


# -- families that are not there, or that are not ours -----------------------------------------------------------------


@pytest.fixture
def hidden(monkeypatch):
    """A transformers without LLaVA."""
    monkeypatch.delitem(CONFIG_MAPPING._mapping, "llava")
    return f"not in transformers {versions.installed()}; comes with 5.16.1"


@pytest.mark.usefixtures("few")
def test_the_doctor_says_what_is_not_there(doctor, hidden):
    code, out, _ = doctor("doctor", "--json")
    model = json.loads(out)["models"][0]
    assert code == 0
    assert (model["name"], model["status"], model["detail"], model["errors"]) == ("llava", "not there", hidden, {})
    code, out, _ = doctor("doctor")
    assert code == 0
    assert hidden in out
    assert out.strip().endswith("2 of 3 models work, 1 could not be tried")


def test_the_list_of_families_says_what_is_not_there(doctor, hidden):
    rows = {row["model_type"]: row for row in json.loads(doctor("families", "--json")[1])}
    assert (rows["llava"]["tier"], rows["llava"]["detail"]) == ("missing", hidden)
    absent = {name for name in TYPES if name not in image_text_types()}
    assert {name for name, row in rows.items() if row["tier"] == "missing"} == {"llava"} | absent
    tested = {name for name in TYPES if reaches(TYPES[name].since)}
    assert {name for name, row in rows.items() if row["tier"] == "tested"} == tested - {"llava"}
    assert all(row["detail"] for row in rows.values() if row["tier"] in ("refused", "missing"))
    assert {row["tier"] for row in rows.values()} <= {"tested", "checked", "unknown", "missing", "refused"}
    assert "missing" in doctor("families")[1]


def test_pruning_or_loading_what_is_not_there(request):
    model = zoo.specimen("llava").model  # before it is hidden
    hidden = request.getfixturevalue("hidden")
    for ask in (lambda: family_of(model.config), lambda: adaptprune.prune(model), adaptprune.load):
        with pytest.raises(AdaptPruneError) as error:
            ask()
        assert f"model type 'llava' is {hidden}: `pip install 'transformers>=5.16.1,<" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["gemma4", "qwen3_5", "lfm2_vl", "nemotron_h_omni", "kimi_k25", "idefics2", "hunyuan_vl"]
)
def test_decoders_of_every_kind_pass(name):
    if name not in zoo.SPECIMENS:
        pytest.skip(f"{name} is not tested with this transformers")
    outcome = selfcheck.check(name)
    assert (outcome.status, outcome.errors) == ("ok", {})
    assert outcome.deviation < 1e-4


def test_every_family_of_ours_says_since_when_it_works():
    assert all(since(name) for name in adaptprune.list_families())
    assert {zoo.specimen(name).model.config.model_type for name in zoo.SPECIMENS} == {
        name for name in adaptprune.list_families() if reaches(since(name))
    }
    for name in zoo.SPECIMENS:
        assert zoo.model_type(name) == zoo.specimen(name).model.config.model_type


def test_what_a_subclass_elsewhere_inherits_does_not_refuse_it(monkeypatch):
    """Its model need not be in transformers at all."""
    monkeypatch.setattr(FAMILIES, "_targets", {"mine": type("Mine", (Llava,), {})})
    assert missing("mine") is None
    assert since("mine") is None


@pytest.mark.usefixtures("few")
def test_families_of_other_packages(doctor, monkeypatch):
    monkeypatch.setitem(FAMILIES._targets, "mine", type("Mine", (Llava,), {}))
    code, out, _ = doctor("doctor")
    assert code == 0
    assert "mine" in out
    assert "no specimen: not checked" in out
    assert out.strip().endswith("3 of 4 models work, 1 could not be tried")
    monkeypatch.setitem(FAMILIES._targets, "mine", "no_such_module:Mine")
    code, out, _ = doctor("doctor")
    assert code == 1
    assert "mine: (import) AdaptPruneError: family 'mine' cannot be imported from 'no_such_module:Mine'" in out


# -- other installations -----------------------------------------------------------------------------------------------

CORE = """
import json, socket, sys
sys.modules |= dict.fromkeys({names})  # cannot be imported
def offline(*_): raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = offline
from adaptprune.testing import selfcheck
print(json.dumps([selfcheck.check(name).errors for name in ("llava", "qwen3_vl")]))
"""
EXTRAS = (
    "pytest", "_pytest", "hypothesis", "tests", "matplotlib", "peft", "accelerate", "bitsandbytes", "gradio", "fastapi",
    "uvicorn", "openai", "pyarrow", "openpyxl", "sentencepiece",
    "torchvision", "psutil",
)  # fmt: skip


def test_the_core_alone_without_a_network():
    done = subprocess.run(
        [sys.executable, "-c", CORE.format(names=EXTRAS)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{}, {}]


def test_a_transformers_that_cannot_be_imported(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise ImportError('tokenizers is too old\\nmuch too old')")
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "adaptprune", "doctor"],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED: ImportError: tokenizers is too old " in done.stdout
    assert "models: not checked, torch and transformers cannot be imported" in done.stdout
    assert versions.judgement() in done.stdout


def test_what_counts_as_amiss():
    found = examine(models=False)
    assert works(found)
    assert found["models_skipped"] == "models=False was given"
    assert works({**found, "models": [{"status": "not there"}, {"status": "not checked"}, {"status": "ok"}]})
    assert not works({**found, "models": [{"status": "failed"}]})
    assert not works({**found, "checks": {**found["checks"], "pocket model": "gone"}})
