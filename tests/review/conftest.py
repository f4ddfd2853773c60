"""Questions and answers in the published layouts, and an environment that only knows the fake judge."""

from __future__ import annotations

import json

import pytest

from tests.review.fake_judge import KEY


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # pauses of the SDK, without waiting for them
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    """Six questions about three pictures in LLaVA-Bench's layout, answered by two models."""
    kinds = ["conv", "detail", "complex"]
    questions = [
        {"question_id": n, "image": f"00{n // 2}.jpg", "text": f"What is {n}?", "category": kinds[n % 3]}
        for n in range(6)
    ]
    contexts = [{"id": f"00{n}", "image": f"00{n}.jpg", "caption": f"Picture {n}."} for n in range(3)]

    def answers(who):
        fields = {"answer_id": f"{who}-x", "model_id": who, "metadata": {}}
        return [{"question_id": n, "prompt": f"What is {n}?", "text": f"{who} says {n}", **fields} for n in range(6)]

    return {
        "questions": lines(tmp_path / "questions.jsonl", questions),
        "context": lines(tmp_path / "context.jsonl", contexts),
        "answers": (
            lines(tmp_path / "gpt4.jsonl", answers("gpt4")),
            lines(tmp_path / "ours.jsonl", answers("ours")[::-1]),  # joined by id, not by line
        ),
        "output": tmp_path / "out" / "reviews.jsonl",
    }


@pytest.fixture
def mm_vet(tmp_path):
    questions = {
        "v1_0": {"imagename": "v1_0.png", "question": "x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
        "v1_1": {"imagename": "v1_1.png", "question": "y?", "answer": "a<OR>b", "capability": ["rec"]},
        "v1_2": {"imagename": "v1_2.png", "question": "z?", "answer": "c", "capability": ["math", "ocr"]},
    }
    (tmp_path / "mm-vet.json").write_text(json.dumps(questions))
    (tmp_path / "results.json").write_text(json.dumps({"v1_0": "-1", "v1_1": "b", "v1_2": ""}))
    return {
        "questions": tmp_path / "mm-vet.json",
        "results": tmp_path / "results.json",
        "output": tmp_path / "grades.jsonl",
    }
