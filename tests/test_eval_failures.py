"""What goes wrong with one question of an evaluation: in opening, asking, scoring, adding up, writing, on the page."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace

import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.errors import reason
from adaptprune.eval import api
from adaptprune.eval.ahead import Failed, ahead
from adaptprune.eval.answers import Answers, read, scored
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.outcome import summarise
from adaptprune.eval.page import write_page
from adaptprune.eval.submission import JsonLines, JsonList, JsonObject, Sheet
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import TASKS, Item
from tests.benchmarks import MAKERS
from tests.evaluating import WANTED, Counting, Plain, answered, picture, run, why


@pytest.fixture(scope="module")
def pocket():
    return api.Model()


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


def test_reasons_are_one_line():
    assert reason(KeyError()) == "KeyError"
    assert reason(AdaptPruneError("a: b.")) == "a: b."
    assert reason(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    assert Summary([], {UNPRUNED: []}, WANTED[:1]).failed == (
        "not one of 0 questions was answered: there is nothing to score"
    )
