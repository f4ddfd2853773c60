"""How an evaluation ends when too much goes wrong: with questions, the disk, a folder that is in use, packages."""

from __future__ import annotations

import builtins
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adaptprune.disk import Lock, WriteError
from adaptprune.eval import api
from adaptprune.eval.outcome import summarise
from adaptprune.eval.report import by_column, by_group, markdown, table_csv
from adaptprune.eval.summary import Summary
from tests.benchmarks import MAKERS, jpeg, lines, put
from tests.evaluating import WANTED, Counting, Plain, answered, run
from tests.test_eval_runs import call

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pocket():
    return api.Model()


# -- too many questions -----------------------------------------------------------------------------------------------


def numbers(value):
    """All numbers in something like JSON, but for ratios and counts of questions."""
    if isinstance(value, dict):
        return [
            x for key, one in value.items() if key not in ("keep_ratio", "questions", "count") for x in numbers(one)
        ]
    return [x for one in value for x in numbers(one)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(("bad", "failed"), [(0, False), (1, False), (2, True), (20, True)])
def test_more_errors_than_allowed_leave_no_numbers(tmp_path, bad, failed):
    names = [str(n) for n in range(20)]
    found = {name: None if int(name) < bad else "x" for name in names}
    files = answered(tmp_path, unpruned=found, fastv=found)
    task = Plain(*names)
    task.tally = lambda: Counting(set())
    task.headline = "count"
    summary = summarise(task, WANTED, tmp_path / "run", files, "m", api.MAX_ERRORS)
    stored = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert bool(summary.failed) is bool(stored.get("failed")) is failed
    assert stored["problems"]["count"] == bad
    assert stored["questions"] == 20 - bad
    if not failed:
        assert stored["columns"][1]["groups"]["total"]["accuracy"]["value"] == 1
        assert "-" not in markdown(summary).splitlines()[2].split(" | ")[:4]
        return
    told = (
        "not one of 20 questions was answered" if bad == 20 else "2 of 20 questions failed, more than --max-errors 0.05"
    )
    assert told in summary.failed
    assert [x for x in numbers(stored["columns"]) if isinstance(x, (int, float))] == []
    for row in markdown(summary).splitlines()[2:]:
        assert set(row.strip("| ").split(" | ")[2:]) == {"-"}
    for row in csv.DictReader(table_csv(summary).splitlines()):
        assert [row[name] for name in ("tokens_kept", "accuracy", "low", "high", "relative")] == [""] * 5
    if stored["columns"][0]["groups"]:
        assert by_column(stored, ["total"]).count("| - |") >= 2
        assert "| total | 18 | - | - - - | - | - - - |" in by_group(stored)
    assert stored["gate"]["random_loss_at_10_percent"] is None
    assert stored["separations"] == []


@pytest.mark.parametrize("percent", range(1, 100))
def test_as_many_errors_as_allowed_are_not_too_many(percent):
    found = [{"score": None, "answer": "", "kept": 0, **({"error": "x"} if n < percent else {})} for n in range(100)]
    for share, failed in ((percent / 100, False), (percent / 100 - 0.001, True)):
        items = Plain(*map(str, range(100))).items()
        summary = Summary(items, {"unpruned": found}, WANTED[:1], max_errors=share)
        assert bool(summary.failed) is failed


def question_set(root, good, bad):
    put(root / "images/1.jpg", jpeg(1))
    rows = [{"question_id": n, "image": "1.jpg" if n >= bad else "no.jpg", "text": "Is it red?", "answer": "no"}
            for n in range(good + bad)]  # fmt: skip
    return lines(root / "q.jsonl", rows)


def arguments(root, out, *more):
    return ["eval", "custom", "--question-file", root / "q.jsonl", "--image-folder", root / "images", "--out", out,
            "--max-new-tokens", 2, "--examples", 1, *more]  # fmt: skip


def test_the_command_line_ends_with_1_and_says_so_last(capsys, monkeypatch, tmp_path):
    question_set(tmp_path, 3, 1)
    code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run"))
    last = "FAILED: custom: 1 of 4 questions failed, more than --max-errors 0.05 allows: there are no scores."
    assert code == 1
    assert err.splitlines()[-1].startswith(last)
    assert not (tmp_path / "run/curves.png").exists()
    code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run", "--json"))
    assert (code, json.loads(out)["failed"][:18]) == (1, "1 of 4 questions f")
    assert err.splitlines()[-1].startswith(last)
    code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run", "--max-errors", 0.25))
    assert (code, "FAILED" in err) == (0, False)
    assert "576" in out
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    code, _, _ = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run", "--max-errors", 0.24))
    assert code == 1
    assert not (tmp_path / "run/curves.png").exists()  # it showed numbers that are no longer given
    for wrong in ("1.5", "-0.1", "nan"):
        code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run", "--max-errors", wrong))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"max_errors={wrong} is not allowed: it is a share, from 0 to 1 (0.05 is 5 %)." in err


def test_not_one_question_asked_is_a_failure_whatever_is_allowed(capsys, monkeypatch, tmp_path):
    question_set(tmp_path, 0, 2)
    code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run", "--max-errors", 1))
    assert code == 1
    assert err.splitlines()[-1] == "FAILED: custom: not one of 2 questions was answered: there is nothing to score."
    assert "│ unpruned" in out
    assert json.loads((tmp_path / "run/summary.json").read_text())["columns"][0]["tokens_kept"] is None


def test_the_other_tasks_are_evaluated_all_the_same(capsys, monkeypatch, tmp_path):
    for name in ("llava_bench", "mmvet"):
        MAKERS[name](tmp_path)
    for path in (tmp_path / "llava-bench-in-the-wild/images").iterdir():
        path.unlink()
    common = ["eval", "llava_bench", "mmvet", "--data", tmp_path, "--max-new-tokens", 2, "--examples", 0]
    code, out, err = call(capsys, monkeypatch, *common, "--out", tmp_path / "run", "--json")
    found = json.loads(out)
    assert (code, list(found)) == (1, ["llava_bench", "mmvet"])
    assert found["mmvet"]["questions"] == 2
    assert "failed" not in found["mmvet"]
    assert err.splitlines()[-1].startswith("FAILED: llava_bench: not one of 3 questions was answered")
    with Lock(tmp_path / "run/mmvet/.lock", "it"):
        code, out, err = call(capsys, monkeypatch, *common, "--out", tmp_path / "run", "--json")
    assert (code, list(json.loads(out))) == (1, ["llava_bench"])
    assert f"FAILED: mmvet: '{tmp_path}/run/mmvet' is in use by process" in err.splitlines()[-1]
    put(tmp_path / "mm-vet/llava-mm-vet.jsonl", "a,b\n1,2\n")
    code, out, err = call(capsys, monkeypatch, *common, "--out", tmp_path / "run2")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "llava-mm-vet.jsonl' starts with 'a,b'" in err
    assert not (tmp_path / "run2").exists()  # all tasks are checked before any is begun


# -- the disk and the folder ------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from adaptprune.cli import main
from adaptprune.eval import runner
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size, make = int(sys.argv.pop(1)), runner.Runner.__init__
def limited(*arguments, **options):
    make(*arguments, **options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
runner.Runner.__init__ = limited
main()
"""


@pytest.mark.parametrize("size", [100, 300, 1000])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, capsys, monkeypatch, size):
    question_set(tmp_path, 6, 0)
    given = [str(one) for one in arguments(tmp_path, tmp_path / "run", "--batch-size", 2, "--examples", 0)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(size), *given], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.count("error:") == 1
    assert "Traceback" not in ended.stderr
    error = ended.stderr[ended.stderr.index("error:") :].strip()
    assert error.startswith(f"error: cannot write '{tmp_path}/run/")
    assert error.endswith(": File too large.")
    before = {p: p.read_bytes() for p in (tmp_path / "run/answers").iterdir()}
    code, _, err = call(capsys, monkeypatch, *given)
    assert code == 0, err
    for path, data in before.items():
        batches = data.splitlines(keepends=True)[: data.count(b"\n") // 2 * 2]
        assert path.read_bytes().startswith(b"".join(batches))
        assert path.read_bytes().count(b"\n") == 6


@pytest.mark.parametrize("name", ["answers", "speed", "summary.json", "table.md", "table.csv", "curves.png", "run.json",
                                  "llava", "examples.html"])  # fmt: skip
def test_every_file_that_cannot_be_written_is_named(tmp_path, pocket, name):
    """A folder in the place of a file, or a file in that of a folder: not even root can write there."""
    out = tmp_path / "run"
    if name in ("answers", "speed", "llava"):
        put(out / name, "")
    elif name != "run.json":
        put(out / name / "x", "")
    else:
        (out / "run.json.part").mkdir(parents=True)
    with pytest.raises(WriteError, match=f"^cannot write '.*{name}.*': .*\\.$"):
        run(Plain("a"), out, pocket, examples=1)


def test_the_second_process_on_a_folder_is_told_who_holds_it(capsys, monkeypatch, tmp_path):
    question_set(tmp_path, 1, 0)
    with Lock(tmp_path / "run/.lock", "x"):
        code, out, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"run' is in use by process {os.getpid()} on " in err
    code, _, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run"))
    assert code == 0, err


def test_tabletops_export_names_what_it_cannot_write(capsys, monkeypatch, tmp_path):
    put(tmp_path / "out/images", "")
    code, out, err = call(capsys, monkeypatch, "tabletop", "--out", tmp_path / "out", "--pictures", 1)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"error: cannot write '{tmp_path}/out/images': File exists."
    code, _, err = call(capsys, monkeypatch, "tabletop", "--out", tmp_path / "out/images/x")
    assert (code, err.count("\n")) == (1, 1)
    assert "Not a directory" in err


# -- packages that are not there --------------------------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch):
    def hide(*names):
        real = builtins.__import__

        def refuse(name, *rest, **more):
            if name.partition(".")[0] in names:
                raise ImportError(f"No module named {name!r}")
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide


def test_without_matplotlib_it_is_said_first_and_everything_else_is_there(capsys, monkeypatch, tmp_path, without):
    question_set(tmp_path, 1, 0)
    without("matplotlib")
    code, _, err = call(capsys, monkeypatch, *arguments(tmp_path, tmp_path / "run"))
    assert code == 0
    assert err.splitlines()[0] == "note: without curves.png, which needs matplotlib: pip install 'adaptprune[eval]'"
    assert err.count("matplotlib") == 1
    assert {"summary.json", "table.md", "table.csv", "examples.html"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(("task", "package"), [("mmbench", "openpyxl"), ("pope", "pyarrow")])
def test_packages_that_a_tasks_files_need_are_missed_before_a_model_is_loaded(
    capsys, monkeypatch, tmp_path, without, task, package
):
    if task == "pope":
        put(tmp_path / "pope/test-0.parquet", b"PAR1")
    else:
        MAKERS[task](tmp_path)
    without(package)
    monkeypatch.setattr(api, "load", None)
    code, out, err = call(capsys, monkeypatch, "eval", task, "--data", tmp_path, "--out", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{package}: pip install 'adaptprune[eval]'" in err
    assert not (tmp_path / "run").exists()
