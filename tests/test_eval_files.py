"""Reading large and damaged files."""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import json
import lzma
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from adaptprune import AdaptPruneError
from adaptprune.eval import api
from adaptprune.eval.files import Bad, jsonl, tsv, tsv_cell
from adaptprune.eval.pictures import from_files
from adaptprune.eval.tasks.custom import Custom
from adaptprune.images import decode_image
from tests.benchmarks import MAKERS, jpeg, lines, mmbench, put
from tests.evaluating import LIST, PLAIN, ROWS

ROOT = Path(__file__).parents[1]


def test_a_bad_row_of_a_tsv_is_told(tmp_path):
    mmbench(tmp_path)
    path = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    good = path.read_text(encoding="utf-8")
    header, _, first = good.partition("\n")
    crlf = "\ufeff" + header + "\n" + "only\tthree\tcells\n" + first
    path.write_bytes(crlf.replace("\n", "\r\n").encode())
    task = api.make_tasks(["mmbench"], data=tmp_path)[0]
    items = list(task.items())
    assert [bool(item.problem) for item in items] == [True] + [False] * 5
    assert "row 2 has 3 cells, the header 14" in items[0].problem
    assert items[1].images()[0].width == 96
    broken = good.replace("\t" + base64.b64encode(jpeg(252)).decode(), "\tnot-base64!" + "x" * 80)
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(AdaptPruneError, match="'picture of 252' is not base64"):
        list(task.items())[3].images()


def test_a_cell_is_read_again_where_it_stands(tmp_path):
    rows = [["index", "note", "image"]] + [
        [str(n), f'a "quoted"\nnote\t{n}\r\nend', "i" * 100 + str(n)] for n in range(5)
    ]
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    found = [row for _, row in tsv(tmp_path / "a.tsv", without="image")]
    assert [len(row.cells["image"]) for row in found] == [64] * 5
    assert [tsv_cell(tmp_path / "a.tsv", row.offset, "image") for row in found] == [row[2] for row in rows[1:]]


def linked(root: Path) -> Path:
    """A picture folder whose pictures are elsewhere, as data sets share them, Hugging Face's cache and git-annex."""
    put(root / "secret.jpg", jpeg(1))
    put(root / "coco/a.jpg", jpeg(2))
    put(root / "blobs/f00", jpeg(3))
    put(root / ".git/annex/objects/x/y/z.jpg", jpeg(4))
    folder = root / "snapshots/main"
    put(folder / "plain.jpg", jpeg(5))
    for name, target in {
        "coco": "../../coco", "blob.jpg": "../../blobs/f00", "annex.jpg": "../../.git/annex/objects/x/y/z.jpg",
        "again.jpg": "blob.jpg", "gone.jpg": "../../blobs/bar", "loop.jpg": "loop.jpg", "nowhere": "../nowhere",
        "whole.jpg": str(root / "secret.jpg"),
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    (folder / "folder.jpg").mkdir()
    return folder


def test_links_in_a_picture_folder_are_followed(tmp_path):
    folder = linked(tmp_path)
    names = {"plain.jpg": 5, "coco/a.jpg": 2, "blob.jpg": 3, "annex.jpg": 4, "again.jpg": 3, "whole.jpg": 1,
             "coco\\a.jpg": 2, "./plain.jpg": 5}  # fmt: skip
    for name, index in names.items():
        (found,) = from_files(folder, [name])
        assert found.tobytes() == decode_image(jpeg(index), name).tobytes(), name
    (tmp_path / "through").symlink_to(folder)
    assert len(from_files(tmp_path / "through", ["plain.jpg", "coco/a.jpg"])) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("../../secret.jpg", "'../../secret.jpg' is outside of"),
        ("coco/../plain.jpg", "is outside of"),
        ("..\\secret.jpg", "is outside of"),
        ("{root}/secret.jpg", "is outside of"),
        ("\\\\server\\share\\a.jpg", "is outside of"),
        ("C:\\a.jpg", "is outside of"),
        ("C:/a.jpg", "is outside of"),
        ("gone.jpg", "gone.jpg' is a link to '../../blobs/bar', which is not there: fetch what it points to"),
        ("loop.jpg", "is a link to 'loop.jpg', which is not there"),
        ("nowhere/a.jpg", "nowhere' is a link to '../nowhere', which is not there"),
        ("folder.jpg", "it is not a file"),
        ("no.jpg", "there is no file"),
        ("plain.jpg/a.jpg", "there is no file|Not a directory"),
        ("a\0b.jpg", "has a zero byte in its name"),
        ("n" * 5000, "File name too long|there is no file"),
        ("~/a.jpg", "there is no file"),  # a name, not a home
        ("example:cup", "there is no file"),
        ("http://127.0.0.1:9/a.jpg", "there is no file"),
    ],
)
def test_names_cannot_leave_the_picture_folder(tmp_path, monkeypatch, name, text):
    folder = linked(tmp_path)
    for place in (folder, Path()):  # the same if the folder is the one we are in
        monkeypatch.chdir(folder)
        with pytest.raises(AdaptPruneError, match=text):
            from_files(place, [name.replace("{root}", str(tmp_path))])


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n\r\n").encode(),
        LIST.encode(),
        json.dumps(ROWS, indent=2).encode(),
        ("[" + ",\n".join(map(json.dumps, ROWS)) + "]").encode(),
        ("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]").encode(),
        json.dumps({"version": "1", "questions": ROWS, "empty": []}).encode(),
        json.dumps({"data": ROWS, "more": [{"a": 1}]}, indent=1).encode(),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-16-le"),
        b"\xff\xfe" + LIST.replace("Straße", "Stra\u0a0a\u0a00ße").encode("utf-16-le"),
        b"\xff\xfe" + PLAIN.replace("Straße", "Stra\u0a0a\u0a41\u410aße").encode("utf-16-le"),
        b"\xfe\xff" + PLAIN.replace("Straße", "Stra\u0a0a\u0a41\u0100ße").encode("utf-16-be"),
        gzip.compress(PLAIN.encode()),
        gzip.compress(LIST.encode("utf-16")),
        bz2.compress(PLAIN.encode()),
        lzma.compress(LIST.encode()),
    ],
    ids=range(18),
)
def test_questions_are_read_from_whatever_holds_json(tmp_path, content):
    path = put(tmp_path / "q.jsonl", content)
    found = list(jsonl(path))
    assert [row["question_id"] for _, row in found] == list(range(12))
    assert found[3][0] in ("q.jsonl, line 4", "q.jsonl, line 7", "q.jsonl, entry 4")
    assert all("rot?" in row["text"] and row["text"].startswith("Ist die Stra") for _, row in found)
    task = Custom(path, tmp_path)
    assert [item.question_id for item in task.items()] == list(range(12))
    assert api._count(task) == 12


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (PLAIN.encode("latin-1"), "is not UTF-8 .*: save the file as UTF-8"),
        (LIST.encode("latin-1"), "q.jsonl' is not UTF-8 .*: save the file as UTF-8"),
        (PLAIN.encode("utf-32"), "is in UTF-32"),
        ("question_id,image,text\n1,a.jpg,x\n", "starts with 'question_id,image,text': jsonl .* is expected"),
        ("question_id\timage\n1\ta.jpg\n", "jsonl .* is expected"),
        (b"PAR1" + b"x" * 50 + b"PAR1", "is a parquet file: jsonl .* is expected"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "is compressed with zstd"),
        (b"PK\x03\x04" + b"x" * 50, "is a zip archive or a spreadsheet"),
        (b"x" * 257 + b"ustar" + b"x" * 300, "is a tar archive"),
        (b"\0" * 50, "is no text"),
        ("<!DOCTYPE html>", "is a web page"),
        ("version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (LIST[:-1] + ",]", "is not JSON .*a comma too many"),
        ("".join(json.dumps(row) + ",\n" for row in ROWS), "is not JSON .*a comma too many"),
        (LIST[:-60], "is not JSON"),
        (json.dumps({"a": ROWS, "b": ROWS}), "is one JSON object \\('a', 'b'\\): jsonl .* is expected"),
        (json.dumps({"1": ROWS[0], "2": ROWS[1]}, indent=1), "is one JSON object"),
        (gzip.compress(PLAIN.encode() * 900)[:-900], "is damaged or cut off"),
        (
            '{"image": "a.jpg", "text": "x"}\n' * 12,
            "12 of 12 questions of custom cannot be used; .* has no 'question_id'",
        ),
        (PLAIN + "oops\n" * 13, "13 of 25 questions of custom cannot be used; the first: q.jsonl, line 13 is not JSON"),
        ("", "custom has no questions here"),
        ("[]", "custom has no questions here"),
        ("\n \n", "custom has no questions here"),
    ],
)
def test_a_file_that_is_something_else_is_one_line(tmp_path, content, text):
    path = put(tmp_path / "q.jsonl", content)
    with pytest.raises(AdaptPruneError, match=text) as told:
        api._count(Custom(path, tmp_path))
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300 + len(str(path))


def test_a_few_bad_lines_are_the_questions_own(tmp_path):
    path = put(tmp_path / "q.jsonl", PLAIN.encode() + '{"question_id": 99, "text": "Straße"}\n'.encode("latin-1"))
    task = Custom(path, tmp_path)
    assert api._count(task) == 13
    assert [item.problem for item in task.items() if item.problem] == [
        "q.jsonl, line 13 is not UTF-8 (byte 34): save the file as UTF-8"
    ]


def test_a_question_may_have_several_pictures_or_none(tmp_path):
    for number in (1, 2):
        put(tmp_path / f"images/{number}.jpg", jpeg(number))
    rows = [{"image": ["1.jpg", "2.jpg"]}, {"images": ["2.jpg"]}, {"images": "1.jpg"}, {"image": []}, {"image": None},
            {"image": ""}, {}, {"image": ["1.jpg", None]}, {"image": {"path": "1.jpg"}}]  # fmt: skip
    path = lines(tmp_path / "q.jsonl", [{"question_id": n, "text": "x", **row} for n, row in enumerate(rows)])
    items = list(Custom(path, tmp_path / "images").items())
    assert [len(item.images()) for item in items[:7]] == [2, 1, 1, 0, 0, 0, 0]
    assert items[0].images()[1].tobytes() == items[1].images()[0].tobytes()
    assert [item.picture for item in items[:4]] == ["1.jpg+2.jpg", "2.jpg", "1.jpg", "3"]
    assert ["has None in it" in items[7].problem, "which is no name of a picture" in items[8].problem] == [True, True]


def test_several_pictures_are_read_by_every_reader_of_question_files(tmp_path):
    MAKERS["llava_bench"](tmp_path)
    folder = tmp_path / "llava-bench-in-the-wild"
    asked = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    asked[0]["image"] = ["001.jpg", "002.jpg"]
    del asked[1]["image"]
    put(folder / "questions.jsonl", gzip.compress(json.dumps(asked).encode("utf-16")))
    items = list(api.make_tasks(["llava_bench"], data=tmp_path)[0].items())
    assert len(items[0].images()) == 2
    assert items[1].problem == "questions.jsonl, entry 2 has no 'image'"


def test_repeated_ids_are_told_apart_and_said_once(tmp_path):
    names = ["a", "b", "a", "a", "a#2", "b"]
    path = lines(tmp_path / "q.jsonl", [{"question_id": name, "text": "x"} for name in names])
    task = Custom(path, tmp_path)
    items = list(task.items())
    assert [item.id for item in items] == ["a", "b", "a#2", "a#3", "a#2#4", "b#5"]
    assert [item.question_id for item in items] == names
    assert not any(item.problem for item in items)
    assert task.notes() == ["4 questions have ids that were there before: told apart as ID#NUMBER"]
    assert [item.id for item in task.items()] == [item.id for item in items]
    MAKERS["pope"](tmp_path)
    file = tmp_path / "pope/llava_pope_test.jsonl"
    put(file, file.read_text() + file.read_text().splitlines()[0] + "\n")
    pope = api.make_tasks(["pope"], data=tmp_path)[0]
    assert [item.id for item in pope.items()][-1] == "1#6"
    assert len(pope.notes()) == 1


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json", {"rows": []}),
        ("gqa", "gqa/data/testdev_balanced_questions.json", {"1": "x"}),
        ("seed", "seed_bench/SEED-Bench.json", {"questions": [{}], "question_type": {}}),
        ("seed", "seed_bench/SEED-Bench.json", {"questions": [], "question_type": 5}),
        ("scienceqa", "scienceqa/llava_test_CQM-A.json", "PAR1 and so on"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "index,question\n1,2\n"),
        ("pope", "pope/llava_pope_test.jsonl", "id,text"),
    ],
)
def test_annotations_of_another_form_are_one_line_that_names_the_file(tmp_path, name, file, content):
    MAKERS[name](tmp_path)
    put(tmp_path / file, content)
    with pytest.raises(AdaptPruneError, match=Path(file).name) as told:
        api._count(api.make_tasks([name], data=tmp_path)[0])
    assert "\n" not in str(told.value)


def test_rows_after_one_that_is_not_utf8_are_still_read(tmp_path):
    path = put(tmp_path / "a.tsv", b"index\tq\n1\tgood\n2\tStra\xdfe\n3\talso good\n")
    found = list(tsv(path))
    assert [isinstance(one, Bad) for one in found] == [False, True, False]
    assert found[1] == Bad("a.tsv, row 3", "is not UTF-8: save the file as UTF-8")
    assert tsv_cell(path, found[2][1].offset, "q") == "also good"


LARGE = """
import resource, sys
from pathlib import Path
from adaptprune.eval.tasks.custom import Custom
task = Custom(Path(sys.argv[1]), Path(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in task.items())
task.settings()
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_file_of_200_megabytes_is_streamed(tmp_path):
    """Every line carries a picture in base64 that nobody asked for; memory must not follow the file's size."""
    (tmp_path / "images").mkdir()
    filler = "A" * 400_000
    with (tmp_path / "large.jsonl").open("w") as file:
        for number in range(500):
            row = {"question_id": number, "image": "1.jpg", "text": "Is it red?", "image_base64": filler}
            file.write(json.dumps(row) + "\n")
    assert (tmp_path / "large.jsonl").stat().st_size > 200e6
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LARGE, str(tmp_path / "large.jsonl"), str(tmp_path / "images")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, megabytes = map(int, found.stdout.split())
    assert count == 500
    assert megabytes < 20


def test_a_tsv_of_many_pictures_is_streamed(tmp_path):
    """A picture's base64 is read when it is opened: the items of a large file are small."""
    path = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    mmbench(tmp_path)
    picture = base64.b64encode(jpeg(1) + b"\0" * 2_000_000).decode()
    header, row = path.read_text().splitlines()[0], path.read_text().split("\n252\t")[1].split("\n")[0]
    cells = row.split("\t")
    cells[next(i for i, cell in enumerate(cells) if len(cell) > 1000)] = picture
    with path.open("w") as file:
        file.write(header + "\n")
        for number in range(40):
            file.write(f"{number}\t" + "\t".join(cells) + "\n")
    assert path.stat().st_size > 100e6
    task = api.make_tasks(["mmbench"], data=tmp_path)[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = list(task.items())
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60
    assert len(items) == 40
    assert not items[39].problem
    assert items[39].images()[0].width == 96


def test_a_reader_tells_bad_lines_and_goes_on(tmp_path):
    put(tmp_path / "a.jsonl", b'{"a": 1}\n' + b"[" * 100_000 + b'\n{"a": 2}')
    found = list(jsonl(tmp_path / "a.jsonl"))
    assert [isinstance(one, Bad) for one in found] == [False, True, False]
    assert found[1].place == "a.jsonl, line 2"
