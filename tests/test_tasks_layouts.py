"""Every benchmark in its true layout: read, answered end to end by the tiny model, scored, written for the server."""

from __future__ import annotations

import base64
import csv
import gzip
import itertools
import json
from pathlib import Path

import pytest

from adaptprune import AdaptPruneError
from adaptprune.eval import api
from adaptprune.eval.answers import read
from adaptprune.eval.metrics import vqa
from adaptprune.eval.task import TASKS
from adaptprune.images import decode_image
from tests.benchmarks import LETTER, MAKERS, MMBENCH, SHORT, cell, jpeg, mmbench, parquet, size, vqav2_val

UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
#: Questions, the whole prompt of the first one, and the answer to each that is right.
EXPECTED = {
    "vqav2": (3, "What is 3?" + SHORT, None),
    "gqa": (3, "Is it overcast?" + SHORT, ["No.", "woman", "yes"]),
    "vizwiz": (3, "What is this?\n" + UNSURE + SHORT, None),
    "scienceqa": (2, "Which one is it?\nA. star\nB. cup" + LETTER, ["A", "B. cup"]),
    "textvqa": (4, "What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL" + SHORT, ["Dakota."] * 4),
    "textvqa_no_ocr": (4, "What is the brand of this camera?" + SHORT, ["the dakota"] * 4),
    "pope": (6, "Is there a star in the image?" + SHORT, ["Yes", "No"] * 3),
    "mme": (4, "Is there one star in this image?" + SHORT, ["Yes", "No"] * 2),
    "mmbench": (5, 'He said "look"\tthere\nand left.\nWhat is it?\nA. star\nB. cup\nC. cross' + LETTER, list("ACBBA")),
    "mmbench_cn": (5, 'He said "look"\tthere\nand left.\nWhat is it?\nA. star\nB. cup\nC. cross\n请直接回答选项字母。',
                   list("ACBBA")),
    "seed": (3, "What is it?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER, list("ABC")),
    "llava_bench": (3, "What is this?", None),
    "mmvet": (2, "What is x in the equation?", None),
}  # fmt: skip
HIGHEST = {"mme": 400.0}  # two subtasks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("eval")
    for make in MAKERS.values():
        make(root)
    return root


@pytest.fixture(scope="module")
def pocket():
    return api.Model()


def task_of(name, data, **options):
    return api.make_tasks([name], data=data, **options)[0]


def test_every_benchmark_is_tested_here():
    assert set(EXPECTED) == set(MAKERS) == set(TASKS.names()) - {"tabletop", "custom"}
    assert len(set(EXPECTED) - {"textvqa_no_ocr"}) == 12


@pytest.mark.parametrize("name", EXPECTED)
def test_items_are_those_of_the_files(name, data):
    task = task_of(name, data)
    items = list(task.items())
    count, prompt, _ = EXPECTED[name]
    assert (len(items), items[0].prompt) == (count, prompt)
    assert not [item.problem for item in items if item.problem]
    assert len({item.id for item in items}) == count
    assert all(1 <= item.images()[0].width <= 96 for item in items)
    assert [item.id for item in task.items()] == [item.id for item in items]  # it can be read again


@pytest.mark.parametrize("name", EXPECTED)
def test_right_answers_score_in_full_and_wrong_ones_nothing(name, data):
    task = task_of(name, data)
    items, right = list(task.items()), EXPECTED[name][2]
    if right is None:
        assert task.scored_by in ("server", "judge")
        assert task.tally() is None
        assert {task.score(item, "x") for item in items} == {None}
        return
    assert [task.score(item, answer) for item, answer in zip(items, right, strict=True)] == [1.0] * len(items)
    wrong = ["no" if answer in ("Yes", "yes") else "yes" for answer in right]
    assert {task.score(item, answer) for item, answer in zip(items, wrong, strict=True)} == {0.0}
    for answers, value in ((right, HIGHEST.get(name, 100.0)), (wrong, 0.0)):
        tally = task.tally()
        for item, answer in zip(items, answers, strict=True):
            tally.add(item, answer)
        assert tally.result()[task.headline or "accuracy"] == pytest.approx(value)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_from_end_to_end(name, data, pocket, tmp_path):
    task = task_of(name, data, limit=2)
    wanted = api.make_columns(["fastv"], [0.25], task)
    result = api.evaluate(task, wanted, tmp_path, model=pocket, batch_size=4, max_new_tokens=2, examples=0)
    count = 2
    assert (result.summary.questions, result.summary.problem_count) == (count, 0)
    items = list(task.items())
    for column, row in zip(wanted, result.summary.rows, strict=True):
        lines = list(read(tmp_path / "answers" / f"{column.file}.jsonl"))
        assert [line["score"] for line in lines] == [
            task.score(item, line["answer"]) for item, line in zip(items, lines, strict=True)
        ]
        assert row.kept == (576 if column.method == "unpruned" else 144)
        assert row.speed.first_token_ms > 0
        assert row.speed.batches == 1
        mine = [json.loads(line) for line in (tmp_path / "llava" / f"{column.file}.jsonl").read_text().splitlines()]
        assert all(
            list(one)[:6] == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"] for one in mine
        )
        assert [one["text"] for one in mine] == [line["answer"] for line in lines]
    bare, pruned = result.summary.rows
    assert bare.agreement == 1
    assert pruned.speed.kv_bytes < bare.speed.kv_bytes
    for file in ("run.json", "summary.json", "table.md", "table.csv", "curves.png"):
        assert (tmp_path / file).stat().st_size > 50
    table = (tmp_path / "table.md").read_text()
    assert ("needs a " + task.scored_by in table) == bool(task.scored_by)
    record = json.loads((tmp_path / "run.json").read_text())
    assert all(len(file["sha256"]) == 64 for file in record["run"]["settings"]["files"].values())


def submission(name, data, tmp_path, answers, **options):
    """What the task writes for the server if the model gives these answers."""
    task = task_of(name, data, **options)
    writer = task.submission(tmp_path, "col")
    for item, answer in zip(task.items(), itertools.chain(answers, itertools.repeat("")), strict=False):
        writer.add(item, answer)
    writer.close()
    return next(path for path in tmp_path.rglob("*") if path.is_file())


def test_files_for_the_servers_are_those_of_llavas_scripts(data, tmp_path):
    """The expected text is what the convert scripts write (`json.dump` of the same entries)."""
    file = submission("vqav2", data, tmp_path / "a", ["Two.", "The cat", "yes"])
    wanted = [(0, "cat"), (1, "yes"), (2, ""), (3, "2"), (4, "")]
    assert file.read_text() == json.dumps([{"question_id": 262144000 + n, "answer": text} for n, text in wanted])
    file = submission("vizwiz", data, tmp_path / "b", ["Unanswerable", "A Star!", ""])
    said = ["unanswerable", "star", ""]
    assert file.read_text() == json.dumps(
        [{"image": f"VizWiz_test_{n:08d}.jpg", "answer": text} for n, text in enumerate(said)]
    )
    file = submission("gqa", data, tmp_path / "c", ["Yes.", "Woman", "no"])
    said = ["yes", "woman", "no"]
    assert file.name == "testdev_balanced_predictions.json"
    assert file.read_text() == json.dumps(
        [{"questionId": str(201307251 + n), "prediction": text} for n, text in enumerate(said)]
    )
    file = submission("seed", data, tmp_path / "d", ["A", "B", "C"])
    assert file.read_text() == "".join(
        json.dumps({"question_id": str(101669 + n), "prediction": "ABC"[n]}) + "\n" for n in range(3)
    )
    file = submission("mmvet", data, tmp_path / "e", ["x is 1", "é"])
    assert file.read_text() == json.dumps({"v1_0": "x is 1", "v1_1": "é"}, indent=2)


def test_the_sheet_for_mmbench_is_that_of_llavas_script(data, tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="part of the extra 'eval'")
    file = submission("mmbench", data, tmp_path, list("ACBBA"))
    book = openpyxl.load_workbook(file)
    assert book.sheetnames == ["Sheet1"]
    rows = list(book.active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (241, "What is it?", "star", "cup", "cross", None, "A", "A", "dev")
    assert rows[5] == (1000252, "What is it?", "blue", "red", None, None, "A", "A", "dev")


def test_vqav2_and_vizwiz_are_scored_on_their_validation_sets(data, tmp_path):
    vqav2_val(tmp_path)
    task = task_of("vqav2", tmp_path, split="val2014")
    items = list(task.items())
    assert items[0].prompt == "Is it a star?" + SHORT
    assert [task.score(item, said) for item, said in zip(items, ["Yes", "no", "x"], strict=True)] == [1.0, 1.0, 0.0]
    task = task_of("vizwiz", data, split="val")
    assert {task.score(item, "star") for item in task.items()} == {1.0}
    assert task.submission(tmp_path, "x") is None


def test_mmbench_pictures_may_stand_in_another_row(data, tmp_path):
    """The Chinese file of the tests has the picture once per question, the English one in every row."""
    english, chinese = (list(task_of(name, data).items()) for name in ("mmbench", "mmbench_cn"))
    for one, other in zip(english, chinese, strict=True):
        assert one.images()[0].tobytes() == other.images()[0].tobytes()
    assert english[0].images()[0].size == size(jpeg(241))
    mmbench(tmp_path, name="mmbench_test_20230712")
    task = task_of("mmbench", tmp_path, split="mmbench_test_20230712")
    assert task.scored_by == "server"
    assert task.score(next(iter(task.items())), "A") is None


def pointing(path: Path, cells: dict[str, str]) -> Path:
    """A MMBench file whose rows hold a picture ("=N" for the test's N-th) or what else is to stand in that cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(MMBENCH)
        for index, cell in cells.items():
            if cell.startswith("="):
                cell = base64.b64encode(jpeg(int(cell[1:]))).decode()
            writer.writerow([index, "Which?", "", "a", "b", "", "", "A", "c", cell, "s", "l", "", "dev"])
    return path


@pytest.mark.parametrize("form", ["plain", "gzip", "utf-16"])
def test_mmbench_pictures_may_stand_in_later_rows(tmp_path, form):
    mmbench(tmp_path)
    path = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    pointing(path, {"1": "3", "2": "1", "3": "1000003", "1000003": "=5", "4": "=6", "5": "5", "6": "7", "7": "8",
                    "8": "6", "9": "99", "10": "4", "11": ""})  # fmt: skip
    if form == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif form == "utf-16":
        path.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))
    items = list(task_of("mmbench", tmp_path).items())
    pictures = {item.id: item.images()[0].tobytes() for item in items if not item.problem and item.id != "11"}
    five, six = (decode_image(jpeg(number), "x").tobytes() for number in (5, 6))
    assert pictures == {"1": five, "2": five, "3": five, "1000003": five, "4": six, "10": six}
    assert {item.picture for item in items[:4]} == {"3"}
    circle = ": they go in a circle"
    assert [item.problem.removeprefix(f"{path.name}, ") for item in items if item.problem] == [
        f"row 7 cannot be used: its picture is that of row 5{circle}",
        f"row 8 cannot be used: its picture is that of row 7 of row 8 of row 6{circle}",
        f"row 9 cannot be used: its picture is that of row 8 of row 6 of row 7{circle}",
        f"row 10 cannot be used: its picture is that of row 6 of row 7 of row 8{circle}",
        "row 11 cannot be used: its picture is that of row 99, and there is no such row",
    ]
    with pytest.raises(AdaptPruneError, match="'picture of 11' is empty"):
        next(item for item in items if item.id == "11").images()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_missing_file_is_named(name, data, tmp_path):
    with pytest.raises(AdaptPruneError, match="is missing: .* belongs there") as caught:
        task_of(name, tmp_path)
    kind = TASKS.get(name)
    first = next(iter(next(iter(kind.splits.values())).files))
    assert str(tmp_path / kind.folders[0] / first) in str(caught.value)


def test_the_folder_itself_is_found_too(data):
    assert len(list(task_of("pope", data / "pope").items())) == 6


PARQUET = {
    "pope": ("test-00000-of-00001", [{"question_id": "1", "question": "Is there a star?", "answer": "yes",
                                      "category": "random", "image_source": "COCO_1", "image": cell(1)}], "Yes"),
    "mme": ("test-00000", [{"question_id": "OCR/0001.jpg", "question": "Is it a star? Please answer yes or no.",
                            "answer": "Yes", "category": "OCR", "image": cell(1)}], "yes"),
    "textvqa": ("validation-0", [{"image_id": "x", "question_id": 3, "question": "What?", "answers": ["a star"] * 10,
                                  "ocr_tokens": ["UP", "TO"], "image": cell(1)}], "star"),
    "scienceqa": ("test-0", [{"image": None, "question": "?", "choices": ["a", "b"], "answer": 0, "hint": "",
                              "grade": "grade2", "subject": "x"},
                             {"image": cell(2), "question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "So.",
                              "grade": "grade8", "subject": "natural science"}], "B"),
    "mmbench": ("dev-0", [{"index": 7, "question": "Which?", "hint": "nan", "A": "a", "B": "b", "C": "nan", "D": "nan",
                           "answer": "B", "category": "x", "image": cell(1), "source": "s", "L2-category": "y",
                           "comment": "nan", "split": "dev"}], "B"),
    "seed": ("test-0", [{"question_id": "9", "question": "Which?", "choice_a": "a", "choice_b": "b", "choice_c": "c",
                         "choice_d": "d", "answer": "B", "data_type": "video", "question_type_id": 10, "data_id": "v",
                         "image": [cell(1), cell(2), cell(3)]}], "B"),
}  # fmt: skip
PROMPTS = {
    "pope": "Is there a star?" + SHORT, "mme": "Is it a star?" + SHORT,
    "textvqa": "What?\nReference OCR token: UP, TO" + SHORT, "scienceqa": "Context: So.\nWhich?\nA. a\nB. b" + LETTER,
    "mmbench": "Which?\nA. a\nB. b" + LETTER, "seed": "Which?\nA. a\nB. b\nC. c\nD. d" + LETTER,
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
def test_parquet_files_of_the_hub_are_read(name, tmp_path):
    pytest.importorskip("pyarrow", reason="part of the extra 'eval'")
    file, rows, answer = PARQUET[name]
    kind = TASKS.get(name)
    parquet(tmp_path / kind.folders[0] / "data" / f"{file}.parquet", rows)
    task = task_of(name, tmp_path)
    (item,) = task.items()
    assert (item.prompt, item.problem) == (PROMPTS[name], "")
    assert item.images()[0].width == 96
    assert task.score(item, answer) == 1
    tally = task.tally()
    tally.add(item, answer)
    assert tally.result()[task.headline or "accuracy"] == (200 if name == "mme" else 100)


def test_parquet_files_of_other_benchmarks_are_left_alone(tmp_path):
    pytest.importorskip("pyarrow", reason="part of the extra 'eval'")
    file, rows, _ = PARQUET["mme"]
    parquet(tmp_path / f"MME/{file}.parquet", rows)
    with pytest.raises(AdaptPruneError, match="llava_pope_test.jsonl' is missing"):
        task_of("pope", tmp_path)
    assert len(list(task_of("mme", tmp_path / "MME").items())) == 1


def test_the_video_frame_is_the_middle_one(tmp_path):
    pytest.importorskip("pyarrow", reason="part of the extra 'eval'")
    file, rows, _ = PARQUET["seed"]
    parquet(tmp_path / f"seed_bench/{file}.parquet", rows)
    (item,) = task_of("seed", tmp_path).items()
    assert item.kind == "Action Recognition"
    assert item.images()[0].size == size(jpeg(2))


def test_a_person_counts_by_his_own_answer(data):
    """TextVQA's file has ten answers in upper and lower case: they are normalised, too."""
    item = next(iter(task_of("textvqa", data).items()))
    assert item.expected == ("dakota",) * 8 + ("dakota digital", "nous")
    assert task_of("textvqa", data).score(item, "Dakota digital") == vqa.accuracy("dakota digital", item.expected) > 0
