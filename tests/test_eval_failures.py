"""What goes wrong in an evaluation: with one question, with too many, with the disk, with a folder that is in use."""

from __future__ import annotations

import builtins
import csv
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.disk import Lock, WriteError
from adaptprune.errors import reason
from adaptprune.eval import api
from adaptprune.eval.ahead import Failed, ahead
from adaptprune.eval.answers import Answers, read, scored
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.outcome import summarise
from adaptprune.eval.page import write_page
from adaptprune.eval.report import by_column, by_group, markdown, table_csv
from adaptprune.eval.submission import JsonLines, JsonList, JsonObject, Sheet
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import TASKS, Item, Task
from tests.benchmarks import MAKERS, jpeg, lines, put
from tests.test_eval_runs import call

ROOT = Path(__file__).parents[1]
WANTED = [Column(UNPRUNED), Column("fastv", 0.1)]


@pytest.fixture(scope="module")
def pocket():
    return api.Model()


def picture():
    return [Image.new("RGB", (96, 96), "red")]


class Plain(Task):
    """As many questions about one picture as there are names; what is not good about each is up to the tests."""

    name = "plain"
    max_new_tokens = 2

    def __init__(self, *names: str, images=picture, **changes: object) -> None:
        self.names, self.images, self.changes = names, images, changes

    def items(self):
        return [Item(name, f"p{name}", self._opener(name), "Is it red?", "yes", "k", **self.changes)
                for name in self.names]  # fmt: skip

    def _opener(self, name):
        return lambda: self.images(name) if self.images is not picture else picture()

    def score(self, item, answer):
        return float(answer == "yes")

    def settings(self):
        return {}


def run(task, out, pocket, **options):
    options = {"batch_size": 4, "examples": 0, "model": pocket, **options}
    return api.evaluate(task, WANTED, out, **options)


def why(result):
    return {problem["id"]: problem["why"] for problem in result.summary.problems}


# -- one question -----------------------------------------------------------------------------------------------------

ERRORS = {"key": KeyError("bytes"), "memory": MemoryError(), "struct": struct.error("unpack requires 4 bytes"),
          "ours": AdaptPruneError("no such picture."), "odd": RuntimeError("first line\nsecond line")}  # fmt: skip


def test_whatever_a_picture_raises_is_its_questions_error(tmp_path, pocket):
    def images(name):
        if name in ERRORS:
            raise ERRORS[name]
        return picture() if name != "garbage" else "no list of pictures"

    names = ["good", *ERRORS, "garbage", "good too"]
    result = run(Plain(*names, images=images), tmp_path, pocket, max_errors=1)
    assert why(result) == {
        "garbage": "TypeError: its pictures are a str, not a list of PIL images",
        "key": "KeyError: 'bytes'", "memory": "MemoryError", "struct": "error: unpack requires 4 bytes",
        "ours": "no such picture.", "odd": "RuntimeError: first line",
    }  # fmt: skip
    assert result.summary.questions == 2
    assert [line["id"] for line in read(tmp_path / "answers/unpruned.jsonl")] == names


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_no_questions_error(end):
    def make(item):
        raise end

    with pytest.raises(end):
        list(ahead([["a"]], str, make, lambda group: True))
    assert [made for _, made in ahead([["a"]], str, lambda item: [][1], lambda group: True)] == [
        {"a": Failed("IndexError: list index out of range")}
    ]


def test_an_answer_that_cannot_be_scored_is_its_questions_error(tmp_path, pocket):
    class Odd(Plain):
        def score(self, item, answer):
            return {"raises": lambda: 1 / 0, "nan": lambda: float("nan")}.get(item.id, lambda: 1.0)()

    result = run(Odd("a", "raises", "nan", "b"), tmp_path, pocket, max_errors=0.5)
    assert why(result) == {
        "raises": "its answer cannot be scored (ZeroDivisionError: division by zero)",
        "nan": "its answer cannot be scored (ValueError: nan is no score)",
    }
    assert result.summary.rows[0].cells["total"].accuracy.value == 1
    line = list(read(tmp_path / "answers/unpruned.jsonl"))[1]
    assert line["answer"]  # it is kept
    assert scored(Odd(), Item("raises", "p", picture, "", None, ""), "x", 3)["kept"] == 3


class Counting:
    """An official metric that is the number of answers, and cannot take some of them."""

    def __init__(self, bad):
        self.bad, self.count = bad, 0

    def add(self, item, answer):
        if (item.id, answer) in self.bad:
            raise TypeError("what is that?")
        self.count += 1

    def result(self):
        return {"count": float(self.count)}


def answered(folder, **columns):
    """Answer files as a run leaves them: by column, {id: answer}, or None in place of an answer that failed."""
    for name, answers in columns.items():
        rows = [{"id": i, "answer": a or "", "score": None if a is None else 1.0, "kept": 1,
                 **({"error": "broken"} if a is None else {})} for i, a in answers.items()]  # fmt: skip
        lines(folder / f"{name}.jsonl", rows)
    return {UNPRUNED: folder / "unpruned.jsonl", "fastv@0.1": folder / "fastv.jsonl"}


def test_a_question_that_fails_under_one_column_counts_under_none(tmp_path):
    files = answered(
        tmp_path, unpruned={"a": "x", "b": "x", "c": "x", "d": None}, fastv={"a": "x", "b": None, "c": "odd", "d": None}
    )
    task = Plain("a", "b", "c", "d")
    task.tally = lambda: Counting({("c", "odd")})
    task.headline = "count"
    summary = summarise(task, WANTED, tmp_path / "run", files, "m", 1.0)
    assert summary.questions == 1
    assert {one["id"]: one["why"] for one in summary.problems} == {
        "b": "fastv@0.1: broken", "c": "its answers cannot be added up (TypeError: what is that?)", "d": "broken",
    }  # fmt: skip
    assert [row.headline for row in summary.rows] == [1.0, 1.0]  # not 2 in the first, which had taken c
    assert [row.agreement for row in summary.rows] == [1.0, 1.0]
    assert [row.cells["total"].accuracy.value for row in summary.rows] == [1.0, 1.0]


def test_a_metric_without_a_result_leaves_the_rest(tmp_path, caplog):
    task = Plain("a")
    task.tally = lambda: type("T", (), {"add": lambda *x: None, "result": lambda self: 1 / 0})()
    files = answered(tmp_path, unpruned={"a": "x"}, fastv={"a": "x"})
    summary = summarise(task, WANTED, tmp_path / "run", files, "m", 0.0)
    assert summary.rows[0].cells["total"].accuracy.value == 1
    assert "official numbers of unpruned cannot be worked out (ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_official_metric_needs_an_answer(name):
    kind = TASKS.get(name)
    task = kind.__new__(kind)
    task.scored_by = ""
    tally = task.tally()
    assert all(value != value or value == 0 for value in (tally.result() if tally else {}).values())


@pytest.mark.parametrize("text", ["half \ud800 of a letter", "bell \x07 and \x0b", "\x00", "= 1 + 1", "x" * 40_000, ""])
def test_whatever_a_model_says_can_be_written(tmp_path, text):
    item = Item("\ud800" if "\ud800" in text else "a", "p", picture, "?", None, "k")
    writers = [
        JsonLines(tmp_path / "l", lambda item, answer: {"id": item.id, "a": answer}),
        JsonList(tmp_path / "j", lambda item, answer: [item.id, answer]),
        JsonObject(tmp_path / "o", lambda item, answer: (item.id, answer)),
        Sheet(tmp_path / "s.xlsx", ["id", "a", "n"], lambda item, answer: [item.id, answer, 3]),
    ]
    for writer in writers:
        writer.add(item, text)
        writer.close()
    assert json.loads((tmp_path / "l").read_text())["a"] == text
    answers = Answers(tmp_path / "answers.jsonl", 1, 1)
    answers.add([{"id": item.id, "answer": text, "score": None, "kept": 0}])
    (line,) = read(tmp_path / "answers.jsonl")
    assert (line["id"], line["answer"]) == (item.id, text)
    assert Answers(tmp_path / "answers.jsonl", 1, 1).check([item.id])


def test_reports_can_be_written_about_any_name(tmp_path, pocket):
    task = Plain("a", "\ud800", "c")
    task.items = lambda: [
        Item(name, f"p{name}\ud800", picture, "Is it red?", "yes", "$x^{ | \n\ud800 <b>") for name in task.names
    ]
    result = run(task, tmp_path, pocket, examples=2)
    assert (tmp_path / "curves.png").exists()
    assert (result.summary.questions, result.summary.failed) == (3, "")
    for name in ("summary.json", "table.md", "table.csv", "examples.html", "llava/unpruned.jsonl"):
        assert (tmp_path / name).read_bytes().decode("utf-8")
    assert len({row.replace("\\|", "").count("|") for row in (tmp_path / "table.md").read_text().splitlines()}) == 1
    assert "<b>" not in (tmp_path / "examples.html").read_text().replace("<b class", "")


class Stub:
    """Answers everything with what was asked, but for what is to fail."""

    processor = None

    def answer(self, images, prompt, pruner=None, **_):
        if prompt == "fails" and pruner is not None:
            raise MemoryError
        return SimpleNamespace(
            text=f"<i>{prompt}", report=None, inputs={}, visual_tokens=None, visual_tokens_kept=None, overlay=None
        )

    def ask(self, turns, sampling=None, pruning=None):
        return self.answer(turns[-1].images, turns[-1].text, pruning.method if pruning.method != "none" else None)


def page(tmp_path, items, count):
    task = Plain()
    task.items = lambda: items
    task.score = lambda item, answer: {"odd": lambda: 1 / 0}.get(item.prompt, lambda: 0.5)()
    write_page(Stub(), task, [Column("fastv", 0.1)], tmp_path / "page.html", count)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_questions_without_a_picture_and_those_that_fail_do_not_break_the_page(tmp_path):
    def gone():
        raise KeyError("bytes")

    given = {"text only": list, "fails": picture, "odd": picture, "gone": gone, "two": lambda: picture() * 2,
             "wide": lambda: [Image.new("RGB", (20_000, 210))]}  # fmt: skip
    items = [Item(name, name, images, name, None, "<b>", frozenset({"<u>"})) for name, images in given.items()]
    items.append(Item("bad", "bad", picture, "bad", None, "<b>", problem="line 3 is not JSON"))
    shown = page(tmp_path, items, 20)
    assert [shown.count(f". {name}</h2>") for name in (*given, "bad")] == [1, 0, 0, 0, 1, 1, 0]
    assert "plain, 3 questions" in shown
    assert "3 more could not be shown, the last because of this: " in shown
    assert shown.count("no picture") == 2  # unpruned, and under the column
    assert shown.count("fastv, no visual tokens") == 3 + 2  # captions, and the texts of two pictures
    assert not any(tag in shown for tag in ("<i>", "<u>", "<b>"))


@pytest.mark.parametrize(("good", "count"), [(0, 3), (1, 3), (9, 3), (9, 1)])
def test_failing_questions_make_room_for_others_on_the_page(tmp_path, good, count):
    names = ["fails"] * 3 + ["fine"] * good
    items = [Item(str(n), str(n), picture, name, None, "k") for n, name in enumerate(names)]
    shown = page(tmp_path, items, count)
    assert shown.count("<section>") == min(good, count)
    assert "because of this: MemoryError." in shown


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
        assert f"max_errors={wrong} is not allowed: it is a share, from 0 to 1." in err


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


def test_reasons_are_one_line():
    assert reason(KeyError()) == "KeyError"
    assert reason(AdaptPruneError("a: b.")) == "a: b."
    assert reason(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    assert Summary([], {UNPRUNED: []}, WANTED[:1]).failed == (
        "not one of 0 questions was answered: there is nothing to score"
    )
