"""Tabletop written to files."""

from __future__ import annotations

import json

from PIL import Image

from adaptprune.tabletop import questions, render, scene
from adaptprune.tabletop.export import export_datasets, export_llava


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_llavas_files(tmp_path):
    asked, answered = export_llava(tmp_path / "a", "test", 3)
    ask, answer = lines(asked), lines(answered)
    expected = [question for index in range(3) for question in questions(scene("test", index))]
    assert [line["text"] for line in ask] == [q.question for q in expected]
    assert [line["text"] for line in answer] == [q.answer for q in expected]
    assert [line["question_id"] for line in ask] == list(range(len(expected)))
    assert set(ask[0]) == {"question_id", "image", "text", "category"}
    assert set(answer[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    with Image.open(tmp_path / "a" / "images" / ask[-1]["image"]) as picture:
        assert picture.tobytes() == render(scene("test", 2)).tobytes()
    again = export_llava(tmp_path / "b", "test", 3)
    assert [p.read_bytes() for p in again] == [asked.read_bytes(), answered.read_bytes()]


def test_the_datasets_folder(tmp_path):
    counted = []
    metadata = export_datasets(tmp_path, "validation", 2, lambda: counted.append(1))
    rows = lines(metadata)
    assert len(rows) == len(counted) == 2
    for index, row in enumerate(rows):
        assert (metadata.parent / row["file_name"]).is_file()
        found = questions(scene("validation", index))
        assert row["answers"] == [q.answer for q in found]
        assert len({len(row[name]) for name in ("questions", "answers", "types", "marks")}) == 1
