"""The evaluation: scores by hand, intervals against simulation, runs that are killed and continued."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.engines import LocalEngine, Pruning, Sampling
from adaptprune.eval import api
from adaptprune.eval.answers import read
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import UNPRUNED, Column, columns
from adaptprune.eval.page import write_page
from adaptprune.eval.report import ahead, by_column, by_group, markdown, plot, table_csv
from adaptprune.eval.runner import Runner
from adaptprune.eval.stats import Bootstrap, estimate
from adaptprune.eval.summary import TOTAL, Summary
from adaptprune.eval.task import Item, Task
from adaptprune.eval.tasks.tabletop import KINDS, Tabletop, mentioned
from adaptprune.models import load
from adaptprune.prompts import question


class Toy(Task):
    """Twelve questions about five pictures, for the tiny model."""

    name = "toy"

    def items(self):
        return [
            Item(f"q{i}", f"p{i * 5 // 12}", lambda i=i: [Image.new("RGB", (90, 90), (20 * (i * 5 // 12), 99, 7))],
                 "what is this ?" if i % 2 else "a b c", "yes", "even" if i % 2 else "odd")
            for i in range(12)
        ]  # fmt: skip

    def score(self, item, answer):
        return float(len(answer) % 2)

    def settings(self):
        return {"size": 12}


@pytest.fixture(scope="module")
def loaded(checkpoint):
    model, processor = load(checkpoint)
    processor.chat_template = (
        "{% for m in messages %}user {% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}"
        "{% endfor %} assistant :{% endfor %}"
    )
    return model, processor


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "answers").iterdir())}


def run(loaded, folder, wanted, **options):
    options = {"max_new_tokens": 3, **options}
    with Asker(*loaded, "model", options.pop("batch_size", 5)) as asker:
        files = Runner(asker, folder, **options).run(Toy(), wanted)
    return {name: list(read(path)) for name, path in files.items()}


def test_a_run_answers_every_item_in_order(loaded, tmp_path):
    wanted = columns(["fastv", "adaptprune", "downsample"], [0.5, 0.1])
    counted = []
    answers = run(loaded, tmp_path, wanted, progress=counted.append)
    assert [column.name for column in wanted][:3] == ["unpruned", "fastv@0.5", "fastv@0.1"]
    assert sum(counted) == 7 * 12
    for lines in answers.values():
        assert [line["id"] for line in lines] == [f"q{i}" for i in range(12)]
        assert all(line["score"] == len(line["answer"]) % 2 for line in lines)
    kept = {name: {line["kept"] for line in lines} for name, lines in answers.items()}
    assert kept == {"unpruned": {36}, "fastv@0.5": {18}, "fastv@0.1": {3}, "adaptprune@0.5": {18},
                    "adaptprune@0.1": {3}, "downsample@0.5": {16}, "downsample@0.1": {3}}  # fmt: skip


def test_answers_are_those_of_the_engine(loaded, tmp_path):
    """Encoding pictures once for several questions and columns changes nothing."""
    answers = run(loaded, tmp_path, columns(["fastv"], [0.25]), batch_size=4)
    engine, sampling = LocalEngine(*loaded), Sampling(3, temperature=0.0)
    for item, plain, pruned in zip(Toy().items(), answers["unpruned"], answers["fastv@0.25"], strict=True):
        turns = question(item.prompt, item.images())
        assert engine.ask(turns, sampling, Pruning("none")).text == plain["answer"]
        assert engine.ask(turns, sampling, Pruning("fastv", 0.25)).text == pruned["answer"]
    engine.close()


@pytest.mark.parametrize("damage", ["cut line", "cut batch", "column missing", "garbage", "a number", "nothing"])
def test_a_killed_run_ends_with_the_same_bytes(loaded, tmp_path, damage):
    wanted = columns(["random"], [0.5, 0.25])
    run(loaded, tmp_path / "whole", wanted)
    run(loaded, tmp_path / "killed", wanted)
    victim = tmp_path / "killed" / "answers" / "random@0.25.jsonl"
    data = victim.read_bytes()
    if damage == "cut line":
        victim.write_bytes(data[: len(data) - 20])
    elif damage == "cut batch":
        victim.write_bytes(b"".join(data.splitlines(keepends=True)[:7]))
    elif damage == "garbage":
        victim.write_bytes(data[:150] + b"\xff{{{\n")
    elif damage == "a number":
        victim.write_bytes(b"5\n")
    elif damage == "column missing":
        victim.unlink()
    run(loaded, tmp_path / "killed", wanted)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_answers_to_other_questions_are_not_continued(loaded, tmp_path):
    run(loaded, tmp_path, columns([], []))
    path = tmp_path / "answers" / "unpruned.jsonl"
    path.write_text(path.read_text().replace('"q0"', '"q99"'))
    with pytest.raises(AdaptPruneError, match="answers to other questions"):
        run(loaded, tmp_path, columns([], []))


def test_columns_are_checked_before_anything_runs():
    with pytest.raises(AdaptPruneError, match="Did you mean 'fastv'"):
        columns(["fastvv"], [0.5])
    with pytest.raises(AdaptPruneError, match="keep_ratio=0 "):
        columns(["fastv"], [0.5, 0])
    with pytest.raises(AdaptPruneError, match="asked for twice"):
        columns(["fastv", "fastv"], [0.5])
    with pytest.raises(AdaptPruneError, match="unknown task 'tabletopp'. Did you mean 'tabletop'"):
        api.make_tasks(["tabletopp"])
    with pytest.raises(AdaptPruneError, match="unknown split 'tset'. Did you mean 'test'"):
        api.make_tasks(["tabletop"], split="tset")


def toy_summary(accuracies, pictures=200, seed=0):
    """Columns that are right with given probabilities, on shared difficulty, three questions a picture."""
    generator = np.random.default_rng(seed)
    items = [SimpleNamespace(picture=f"p{i // 3}", kind="ab"[i % 2], marks=frozenset({"m"} if i % 5 else ()))
             for i in range(3 * pictures)]  # fmt: skip
    hard = generator.random(3 * pictures)
    answers = {name: [{"score": float(h < p), "answer": str(h < p), "kept": 5} for h in hard]
               for name, p in accuracies.items()}  # fmt: skip
    wanted = [Column(UNPRUNED)] + [Column(n.split("@")[0], float(n.split("@")[1])) for n in accuracies if "@" in n]
    return Summary(items, answers, wanted), answers


def test_the_table_by_group_has_every_question_type_and_its_interval():
    summary, _ = toy_summary({UNPRUNED: 0.9, "random@0.1": 0.4})
    lines = by_group(summary.to_dict()).splitlines()
    assert lines[0] == "| questions | n | unpruned | 95 % | random 10 % | 95 % |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| total", "| a", "| b", "| m"]
    accuracy = summary.rows[1].cells["a"].accuracy
    numbers = [f"{100 * x:.1f}" for x in (accuracy.value, accuracy.low, accuracy.high)]
    assert lines[3].endswith(f"| {numbers[0]} | {numbers[1]} - {numbers[2]} |")


def test_the_table_by_column_and_what_is_ahead():
    summary, _ = toy_summary(
        {UNPRUNED: 0.9, "fastv@0.1": 0.8, "random@0.1": 0.4, "fastv@0.5": 0.85, "random@0.5": 0.85}
    )
    stored = summary.to_dict()
    lines = by_column(stored, ["total", "b"]).splitlines()
    assert lines[0] == "| method | keep | tokens | total | b | of unpruned | same answer |"
    row = summary.rows[2]
    relative = row.relative
    numbers = [f"{100 * x:.1f}" for x in (row.cells["total"].accuracy.value, row.cells["b"].accuracy.value,
                                          relative.value, relative.low, relative.high, row.agreement)]  # fmt: skip
    total, of_b, value, low, high, same = numbers
    assert lines[4] == f"| random | 0.1 | 5 | {total} | {of_b} | {value} ({low} - {high}) | {same} |"
    assert len(lines) == 2 + 5
    gap = summary.difference(summary.rows[1].column, row.column)
    points, low, high = (f"{100 * x:.1f}" for x in (gap.value, gap.low, gap.high))
    assert ahead(stored, "fastv").splitlines() == [
        "| keep | fastv - random |", "|---:|---:|", f"| 0.1 | {points} ({low} - {high}) |", "| 0.5 | - |"
    ]  # fmt: skip
    assert ahead(stored, "random").splitlines()[2] == f"| 0.1 | -{points} (-{high} - -{low}) |"


def test_every_separation_of_the_total_is_stored():
    from adaptprune.eval.summary import _most

    rows = [{"group": "total" if i % 3 == 0 else "a", "place": i} for i in range(200)]
    found = _most(rows, 50)
    assert [row["place"] for row in found] == [i for i in range(200) if i % 3 == 0 or i <= 74]


def test_a_summary_by_hand():
    items = [SimpleNamespace(picture=p, kind=k, marks=frozenset()) for p, k in zip("aabb", "xyxy", strict=True)]
    line = lambda score, answer: {"score": score, "answer": answer, "kept": 7}  # noqa: E731
    answers = {
        "unpruned": [line(1.0, "Yes"), line(1.0, "b"), line(1.0, "c"), line(0.0, "d")],
        "fastv@0.5": [line(1.0, "yes"), line(0.0, "x"), line(0.0, "y"), line(0.5, "d")],
    }
    summary = Summary(items, answers, [Column(UNPRUNED), Column("fastv", 0.5)])
    base, row = summary.rows
    assert [base.cells[g].accuracy.value for g in (TOTAL, "x", "y")] == [0.75, 1.0, 0.5]
    assert [row.cells[g].accuracy.value for g in (TOTAL, "x", "y")] == [0.375, 0.5, 0.25]
    assert row.cells[TOTAL].relative.value == 0.5
    assert row.cells["y"].difference.value == -0.25
    assert (base.agreement, row.agreement, row.kept) == (1.0, 0.5, 7)
    assert "| fastv | 0.5 | 7 | 37.5 | 50.0 | 25.0 | 50.0 (" in markdown(summary)
    assert "fastv,0.5,7.0,x,2,0.500000," in table_csv(summary)


def test_intervals_cover_the_truth_as_often_as_they_claim():
    """300 simulated studies of clustered answers: a 95 % interval holds the true value in 95 +- 3 %."""
    generator = np.random.default_rng(1)
    covered = 0
    for study in range(300):
        easy = np.repeat(generator.normal(size=80), 4)  # four answers share a picture
        right = (easy + generator.normal(size=320) > 0).astype(float)
        found = estimate(Bootstrap([f"p{i // 4}" for i in range(320)], draws=400, seed=study).means(right))
        covered += found.low <= 0.5 <= found.high
    assert 0.92 * 300 <= covered <= 0.985 * 300


def test_paired_differences_are_tighter_than_either_interval():
    summary, _ = toy_summary({"unpruned": 0.9, "random@0.1": 0.7, "fastv@0.1": 0.75})
    gap = summary.difference(Column("fastv", 0.1), Column("random", 0.1))
    alone = summary.rows[1].cells[TOTAL].accuracy
    assert gap.low > 0
    assert gap.high - gap.low < alone.high - alone.low
    best = summary.separations()[0]
    assert (best["better"], best["worse"], best["keep_ratio"]) == ("fastv", "random", 0.1)


@pytest.mark.parametrize(
    ("accuracies", "passed"),
    [
        ({"unpruned": 0.9, "random@0.1": 0.6, "fastv@0.1": 0.8}, True),
        ({"unpruned": 0.9, "random@0.1": 0.85, "fastv@0.1": 0.6}, False),  # random costs too little
        ({"unpruned": 0.9, "random@0.1": 0.6, "fastv@0.1": 0.6}, False),  # nothing is told apart
        ({"unpruned": 0.9, "fastv@0.1": 0.6}, False),  # random was not measured
    ],
)
def test_the_validity_gate(accuracies, passed):
    assert toy_summary(accuracies)[0].gate()["passed"] is passed


def test_the_curves_are_drawn(tmp_path):
    summary, _ = toy_summary(
        {"unpruned": 0.9, "random@0.1": 0.6, "random@0.5": 0.8, "fastv@0.1": 0.7, "fastv@0.5": 0.85}
    )
    plot(summary, tmp_path / "curves.png", "toy")
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    assert image.width > 1000
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # both methods' lines are there


def test_the_page_shows_two_rules_side_by_side(loaded, tmp_path):
    wanted = columns(["adaptprune", "adaptprune:keys=previous", "fastv", "downsample"], [0.5, 0.25, 0.1])
    chosen = api._for_page(wanted)
    assert [column.name for column in chosen] == ["adaptprune@0.1", "fastv@0.1"]
    with Asker(*loaded, "model", 4) as asker:
        write_page(asker.engine, Toy(), chosen, tmp_path / "page.html", count=5)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<section>") == 5
    assert page.count("data:image/webp;base64,") == 15
    assert page.count("fastv, 3 of 36 tokens") == 10  # as a caption and as the picture's text
    assert "src='http" not in page
    assert "<link" not in page


def test_captions_are_scored_by_the_objects_they_mention():
    wanted = "a red circle, a blue star and a green cross"
    assert mentioned(wanted, wanted) == 1
    assert mentioned("A green cross and a red circle.", wanted) == pytest.approx(2 * 2 / 5)
    assert mentioned("a red star, a blue star", wanted) == pytest.approx(2 * 1 / 5)
    assert mentioned("", wanted) == mentioned("a circle", wanted) == 0


def test_tabletop_items_are_stable_and_varied():
    items = Tabletop("validation", 30).items()
    assert [item.id for item in items] == [item.id for item in Tabletop("validation", 30).items()]
    assert len({item.id for item in items}) == len(items)
    assert {item.kind for item in items} == set(KINDS)
    assert all(item.images()[0].size == (336, 336) for item in items[:3])
    assert max(map(len, ([i for i in items if i.picture == p] for p in {i.picture for i in items}))) == 8
    assert Tabletop("validation", 1).score(items[0], f" {items[0].expected.upper()}. ") == 1


def test_tabletop_asks_about_two_pictures():
    items = Tabletop("test", 5, ["two_images", "colour"]).items()
    pairs = [item for item in items if item.kind == "two_images"]
    assert len(pairs) == 5
    assert [len(item.images()) for item in pairs] == [2] * 5
    assert pairs[0].picture == "test-0+test-1"
    assert {item.expected for item in pairs} <= {"first", "second"}
    with pytest.raises(AdaptPruneError, match="unknown question type 'color'. Did you mean 'colour'"):
        Tabletop("test", 5, ["color"])


def test_a_folder_with_another_run_is_refused(tmp_path):
    record = {"task": "a", "settings": {}, "model": "pocket"}
    api.check_folder(tmp_path, record)
    api.write_record(tmp_path, record, SimpleNamespace(config=None, dtype="float32", device="cpu"), "model")
    api.check_folder(tmp_path, dict(record))
    saved = json.loads((tmp_path / "run.json").read_text())
    assert {"run", "command", "versions", "python", "commit", "model_revision", "seeds", "protocol"} <= set(saved)
    assert "/" not in saved["command"][0]  # results are shared: no path of the machine
    with pytest.raises(AdaptPruneError, match="holds another run \\(model was 'pocket'\\)"):
        api.check_folder(tmp_path, {**record, "model": "x"})
    (tmp_path / "run.json").write_text("[1")
    with pytest.raises(AdaptPruneError, match="run.json' is damaged"):
        api.check_folder(tmp_path, record)
    with pytest.raises(AdaptPruneError, match="is a file: name a folder"):
        api.check_folder(tmp_path / "run.json", record)


def test_an_estimate_of_nothing_is_not_a_number():
    found = estimate(Bootstrap(["a", "b"]).means(np.ones(2), np.zeros(2, dtype=bool)))
    assert math.isnan(found.value)
    assert found.to_dict() == {"value": None, "low": None, "high": None}
