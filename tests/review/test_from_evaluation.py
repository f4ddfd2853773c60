"""From a benchmark's files to a judged number: `eval` answers, `review` asks the judge, `summarize` counts."""

from __future__ import annotations

import json

import pytest

from adaptprune.eval import api
from adaptprune.review import review_mm_vet, review_pairs, summarize
from tests.benchmarks import MAKERS
from tests.review.fake_judge import FakeJudge, judge


def answered(name: str, tmp_path):
    """A run of one benchmark under AdaptPrune, with two new tokens per answer."""
    data = tmp_path / "data"
    MAKERS[name](data)
    task = api.make_tasks([name], data=data)[0]
    columns = api.make_columns(["adaptprune"], [0.1])
    result = api.evaluate(task, columns, tmp_path / "run", max_new_tokens=2, examples=0)
    assert "needs a judge" in (tmp_path / "run" / "table.md").read_text()
    assert result.folder == tmp_path / "run"
    return data, tmp_path / "run", columns[1].file, list(task.items())


def test_llava_bench(tmp_path):
    data, run, column, items = answered("llava_bench", tmp_path)
    folder = data / "llava-bench-in-the-wild"
    ours = run / "llava" / f"{column}.jsonl"
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    reference = tmp_path / "reference.jsonl"
    lines = [{"question_id": each["question_id"], "text": "a reference"} for each in questions]
    reference.write_text("".join(json.dumps(line) + "\n" for line in lines))
    context = tmp_path / "context.jsonl"
    pictures = {each["image"] for each in questions}
    context.write_text("".join(json.dumps({"image": name, "caption": "a table"}) + "\n" for name in pictures))
    with FakeJudge("8 6\nThe first is better.") as fake:
        review_pairs(
            judge(fake),
            questions=folder / "questions.jsonl",
            answers=(reference, ours),
            context=context,
            output=tmp_path / "review.jsonl",
        )
    texts = [json.loads(line)["text"] for line in ours.read_text().splitlines()]
    asked = [body["messages"][-1]["content"] for _, _, body in fake.seen]
    assert len(asked) == len(items) == len(texts)
    assert all(any(text in prompt for prompt in asked) for text in texts)
    (group,) = [group for group in summarize(tmp_path / "review.jsonl").groups if group.name == "all"]
    assert group.values["relative"].value == pytest.approx(75.0)


def test_mm_vet(tmp_path):
    _, run, column, items = answered("mmvet", tmp_path)
    questions = {
        f"v1_{item.question_id}": {"question": item.prompt, "answer": "x", "capability": ["ocr", "math"]}
        for item in items
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(questions))
    with FakeJudge("0.5") as fake:
        review_mm_vet(
            judge(fake),
            questions=tmp_path / "mm-vet.json",
            results=run / "submission" / f"{column}.json",
            output=tmp_path / "review.jsonl",
        )
    assert len(fake.seen) == len(items)
    (group,) = [group for group in summarize(tmp_path / "review.jsonl").groups if group.name == "all"]
    assert group.values["score"].value == pytest.approx(50.0)
