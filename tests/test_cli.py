"""The command line as a user meets it: output, exit codes, one line per mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from adaptprune.cli import main
from adaptprune.models.loading import TOY, pocket_path

LIGHT = "import sys; from adaptprune.cli.app import add_commands; add_commands(); sys.exit('torch' in sys.modules)"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaptprune", *args])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def test_run_streams_and_reports(call, checkpoint, picture):
    code, out, err = call("run", "--model", checkpoint, "--image", picture, "--prompt", "what is this ?",
                          "--keep-ratio", "0.25", "--layer", "1", "--max-new-tokens", "4")  # fmt: skip
    assert code == 0, err
    assert "adaptprune before layer 1: kept 9 of 36 visual tokens" in out
    assert "first token" in out
    assert err == ""


def test_run_as_json(call, checkpoint, picture):
    arguments = ["run", "--model", checkpoint, "-i", picture, picture, "-p", "what is this ?", "--json",
                 "--max-new-tokens", "4", "--method", "fastv:keep_ratio=0.5"]  # fmt: skip
    code, out, _ = call(*arguments)
    record = json.loads(out)
    assert code == 0
    assert record["images"] == [picture, picture]
    assert record["report"]["samples"][0]["images"] == [[36, 18], [36, 18]]
    assert record["report"]["kv_lengths"] == [record["prompt_tokens"]] * 2 + [record["prompt_tokens"] - 36] * 3
    assert 0 < record["timings"]["first_token_ms"] <= record["timings"]["total_ms"]
    assert record["timings"]["new_tokens"] == 4
    assert set(record["versions"]) == {"adaptprune", "torch", "transformers", "numba"}
    again = json.loads(call(*arguments)[1])
    assert again["answer"] == record["answer"]


def test_the_toy_says_that_it_is_one_once_and_on_stderr(call, monkeypatch):
    """`run` and `chat`, also with JSON on stdout; named, by its folder or by default; no other model says so."""
    common = ["-i", "example:cloth", "--json", "--max-new-tokens", "4"]
    for model in ([], ["--model", "pocket"], ["--model", str(pocket_path())]):
        code, out, err = call("run", *model, "-p", "What colour is the triangle?", *common)
        assert code == 0
        assert json.loads(out)["answer"] == "orange"
        assert err == f"{TOY}\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO("What colour is the triangle?\nWhat shape is the pink object?\n"))
        code, out, err = call("chat", *model, *common)
        assert len([json.loads(line) for line in out.splitlines()]) == 2
        assert err.count(TOY) == 1


def test_sampling_is_seeded(call, checkpoint, picture):
    def answer(seed: str) -> str:
        common = ["run", "--model", checkpoint, "-i", picture, "-p", "a", "--json", "--max-new-tokens", "12"]
        return json.loads(call(*common, "--temperature", "1.5", "--seed", seed)[1])["answer"]

    assert answer("1") == answer("1") != answer("2")


def test_without_an_image_or_unpruned(call, checkpoint, picture):
    common = ["run", "--model", checkpoint, "--prompt", "a b", "--max-new-tokens", "3"]
    assert "the prompt had no image: nothing to prune" in call(*common)[1]
    code, out, _ = call(*common, "--image", picture, "--method", "none", "--json")
    assert code == 0
    assert json.loads(out)["report"] is None


def test_overlay_dims_what_was_dropped(call, checkpoint, picture, tmp_path):
    out = tmp_path / "overlay.png"
    code, text, _ = call("run", "--model", checkpoint, "-i", picture, picture, "-p", "a", "--json",
                         "--max-new-tokens", "1", "--keep-ratio", "0.25", "--overlay", str(out))  # fmt: skip
    assert code == 0
    image = Image.open(out)
    side, gap = 6 * 28, 8
    assert image.size == (2 * side + gap, side)
    assert json.loads(text)["report"]["num_kept"] == 18
    kept = 0
    for panel in range(2):
        for cell in range(36):
            middle = image.getpixel((panel * (side + gap) + cell % 6 * 28 + 14, cell // 6 * 28 + 14))
            kept += len(set(middle)) > 1  # dropped patches have no colour
    assert kept == 18


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--image", "nowhere.png"], "there is no file 'nowhere.png'"),
        (["--keep-ratio", "0"], "keep_ratio=0.0 is not allowed"),
        (["--keep-ratio", "nan"], "keep_ratio=nan is not allowed"),
        (["--keep-ratio", "1.01"], "keep_ratio=1.01 is not allowed"),
        (["--method", "adaptprun"], "Did you mean 'adaptprune'"),
        (["--method", "adaptprune:keep_ration=1"], "Did you mean 'keep_ratio'"),
        (["--method", "none", "--layer", "2"], "leave out layer"),
        (["--layer", "99"], "has 5 decoder layers: use 1 to 4"),
        (["--model", "nobody/none"], "neither a folder here"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--prompt", "b " * 600], "more than the model's context of 512"),
        (["--prompt", "an <image> here"], "image placeholder '<image>'"),
        (["--overlay", "x.png", "--method", "none"], "--overlay shows what was dropped"),
        (["--overlay", "x.jpg"], "has to end in .png"),
        (["--seed", "-1"], "seed=-1"),
        (["--seed", "9" * 23], "seed=999"),
        (["--temperature", "1e-300"], "temperature=1e-300"),
        (["--prompt", "caf\udce9"], "half of a surrogate pair"),
        (["--method", "adaptprune:keys=[1]"], "unknown keys=[1]"),
        (["--method", "adaptprune:distance_limit=abc"], "distance_limit='abc'"),
        (["--method", "adaptprune:backend=gpu"], "unknown backend='gpu'"),
        (["--method", "adaptprune:centre_sigma=1e300"], "centre_sigma=1e+300"),
        (["--overlay", "/no/such/folder/x.png"], "there is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, checkpoint, picture, options, text):
    base = {"--model": checkpoint, "--image": picture, "--prompt": "a"}
    base.update(zip(options[::2], options[1::2], strict=True))
    code, out, err = call("run", *(word for pair in base.items() for word in pair))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err


def test_a_terminal_that_cannot_show_a_letter(checkpoint, picture):
    command = ["run", "--model", checkpoint, "-i", picture, "-p", "ünï", "--json", "--max-new-tokens", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "adaptprune", *command], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b'"prompt": "\\xfcn\\xef"' in done.stdout


def test_an_overlay_that_cannot_be_written(call, checkpoint, picture, tmp_path):
    (tmp_path / "folder.png").mkdir()
    code, out, err = call(
        "run", "--model", checkpoint, "-i", picture, "-p", "a", "--overlay", str(tmp_path / "folder.png")
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is a folder" in err


def test_an_empty_image(call, checkpoint, tmp_path):
    (tmp_path / "empty.png").touch()
    code, _, err = call("run", "--model", checkpoint, "-i", str(tmp_path / "empty.png"), "-p", "a")
    assert (code, err.count("\n")) == (2, 1)
    assert "is empty" in err


@pytest.mark.parametrize("name", ["methods", "families"])
def test_lists(call, name):
    code, out, _ = call(name, "--json")
    rows = json.loads(out)
    assert code == 0
    key = {"methods": "name", "families": "model_type"}[name]
    code, out, _ = call(name)
    assert code == 0
    for row in rows:
        assert row[key] in out


def test_one_method_and_those_of_a_site(call):
    code, out, _ = call("methods", "adaptprune")
    assert code == 0
    assert "similarity_sigma" in out
    assert "looks at attention: probabilities of the last prompt token" in out
    code, out, _ = call("methods", "--site", "any", "--json")
    assert {row["site"] for row in json.loads(out)} == {"any"}
    code, out, err = call("methods", "fastw")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Did you mean 'fastv'" in err
    code, _, err = call("methods", "--site", "encodr")
    assert code == 2
    assert "Did you mean 'encoder'" in err


def test_doctor(call):
    code, out, _ = call("doctor", "--json", "--no-models")  # with them: tests/test_doctor.py
    found = json.loads(out)
    assert found["checks"] == dict.fromkeys(
        ("torch and transformers", "compiled selection", "plug-ins", "pocket model")
    )
    assert code == 0
    assert found["versions"]["torch"]
    assert any(device.startswith("cpu") for device in found["devices"])
    code, out, _ = call("doctor", "--no-models")
    assert code == 0
    assert "compiled selection" in out
    assert "models: not checked, --no-models was given" in out


def test_bench_on_a_small_decoder(call):
    code, out, _ = call(
        "bench", "--decoder", "3x64", "4x128", "--keep-ratio", "0.1", "--method", "fastv", "--rounds", "2", "--json"
    )
    result = json.loads(out)
    assert code == 0
    assert list(result["decoders"]) == ["3x64", "4x128"]
    unpruned, pruned = result["decoders"]["3x64"]
    assert unpruned["speedup"] == 1
    assert unpruned["kv_bytes"] == 3 * 2 * 668 * 64 * 4
    assert pruned["kv_bytes"] == (2 * 668 + 149) * 2 * 64 * 4
    assert pruned["prefill_ms_min"] <= pruned["prefill_ms"] <= pruned["prefill_ms_max"]
    assert "8 n d^2" in result["conditions"]


@pytest.mark.parametrize(
    ("arguments", "text"), [(["--decoder", "24"], "write LAYERSxWIDTH"), (["--rounds", "0"], "rounds=0")]
)
def test_bench_mistakes(call, arguments, text):
    code, _, err = call("bench", *arguments)
    assert code == 2
    assert text in err


def test_version_help_and_unknown_command(call):
    assert call("--version")[1].startswith("adaptprune 0.")
    code, out, _ = call("run", "--help")
    assert code == 0
    assert "--keep-ratio" in out
    assert call("rum")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rum"], "No such command 'rum'"),
        (["run", "--prompt", "a", "--frobnicate"], "No such option: --frobnicate"),
        (["run", "--prompt", "a", "--keep-ratio", "x"], "Invalid value for '--keep-ratio'"),
        (["run"], "Missing option '--prompt'"),
        (["eval"], "Missing argument 'TASK"),
    ],
)
def test_a_mistyped_command_line_is_one_line_too(call, arguments, text):
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text.lower() in err.lower()
    assert "--help" in err


def test_the_command_line_starts_without_torch():
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0


def test_importing_the_package_costs_less_than_a_second_beyond_torch_and_transformers():
    code = (
        "import time, torch, transformers; start = time.perf_counter(); import adaptprune; adaptprune.Pruner; "
        "adaptprune.make_pruner('adaptprune'); print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0
