"""The loading options on the command line, and in the record of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.utils import is_accelerate_available, is_bitsandbytes_available

from adaptprune import AdaptPruneError
from adaptprune.cli.loading import OPTIONS
from adaptprune.eval import api
from tests.original_layout import parts, write, write_lora
from tests.test_cli import call  # noqa: F401

QUESTION = ["-p", "What is this?", "--max-new-tokens", "2", "--device", "cpu", "--keep-ratio", "0.5", "--layer", "1"]


def test_an_original_checkpoint_and_its_tower(call, picture, tmp_path):  # noqa: F811
    folder = Path(write(parts("1.5"), tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}))
    code, _, err = call("run", "--model", str(folder), "-i", picture, *QUESTION)
    assert code == 2
    assert err.splitlines()[-1].startswith("error: cannot use")
    assert "--vision-tower" in err.splitlines()[-1]
    tower = ["--vision-tower", str(tmp_path / "tower")]
    code, out, err = call("run", "--model", str(folder), *tower, "-i", picture, *QUESTION, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["model"] == str(folder)
    assert record["report"]["samples"][0]["images"] == [[16, 8]]


def test_unmerged_lora_and_its_base(call, picture, tmp_path):  # noqa: F811
    pytest.importorskip("peft", reason="the lora extra is not installed")
    adapter, base = write_lora(parts("1.5"), tmp_path)
    code, _, err = call("run", "--model", adapter, "-i", picture, *QUESTION)
    assert code == 2
    assert "--model-base" in err
    assert call("run", "--model", adapter, "--model-base", base, "-i", picture, *QUESTION)[0] == 0


@pytest.mark.skipif(
    not (is_bitsandbytes_available() and is_accelerate_available()), reason="the quant extra is not installed"
)
@pytest.mark.parametrize("options", [["--load-4bit"], ["--load-8bit", "--device-map", '{"": "cpu"}']])
def test_few_bits(call, checkpoint, picture, options):  # noqa: F811
    question = [word for word in QUESTION if "--device-map" not in options or word not in ("--device", "cpu")]
    code, out, err = call("run", "--model", checkpoint, "-i", picture, *question, *options)
    assert code == 0, err
    assert "kept 18 of 36 visual tokens" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--device-map", "{"], "--device-map '{' is not JSON"),
        (["--device-map", "autos"], "Did you mean 'auto'"),
        (["--device-map", "auto", "--device", "cpu"], "exclude each other"),
        (["--load-4bit", "--load-8bit"], "exclude each other"),
        (["--attention", "spda"], "Did you mean 'sdpa'"),
        (["--model-base", "x"], "leave model_base out"),
    ],
)
def test_mistakes_are_one_line(call, options, text):  # noqa: F811
    code, out, err = call("run", "-p", "a", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_every_command_that_loads_has_the_same_options(call):  # noqa: F811
    for command in ("run", "eval"):
        shown = call(command, "--help")[1]
        for name in OPTIONS:
            assert f"--{name.replace('_', '-')}" in shown


def test_an_evaluation_is_not_continued_with_another_model(tmp_path, monkeypatch):
    class Loaded(Exception):
        pass

    def load(*args, name_or_path=None, load_in_4bit=False, device=None, dtype=None):
        raise Loaded

    monkeypatch.setattr(api, "load", load)
    task = api.make_tasks(["tabletop"])[0]
    run = {"task": "tabletop", "settings": task.settings(), "model": "pocket", "batch_size": 16}
    run |= {"max_new_tokens": task.max_new_tokens, "protocol": "auto"}
    (tmp_path / "run.json").write_text(json.dumps({"run": {**run, "device": None, "dtype": None}}))
    for same in ({}, {"name_or_path": None, "load_in_4bit": False}):
        with pytest.raises(Loaded):
            api.evaluate(task, [], tmp_path, model=api.Model(same))
    for other in ({"load_in_4bit": True}, {"name_or_path": "x"}, {"dtype": "float16"}):
        with pytest.raises(AdaptPruneError, match=r"holds another run \((load_in_4bit|model|dtype) was"):
            api.evaluate(task, [], tmp_path, model=api.Model(other))
    (tmp_path / "run.json").write_text(json.dumps({"run": {**run, "load_in_4bit": True}}))
    with pytest.raises(AdaptPruneError, match="load_in_4bit was True"):
        api.evaluate(task, [], tmp_path)
