"""Reading large and damaged files."""

from __future__ import annotations

import base64
import csv
import json
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
from tests.benchmarks import jpeg, mmbench, put

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


def test_names_cannot_leave_the_picture_folder(tmp_path):
    put(tmp_path / "secret.jpg", jpeg(1))
    (tmp_path / "pictures").mkdir()
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        with pytest.raises(AdaptPruneError, match="is outside of"):
            from_files(tmp_path / "pictures", [name])


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
