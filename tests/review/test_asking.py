"""The review against a fake judge: what is asked and written, what a killed run goes on with, the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from adaptprune.cli import main
from adaptprune.errors import AdaptPruneError
from adaptprune.review import Judge, review_mm_vet, review_pairs, summarize
from tests.review.fake_judge import KEY, Answer, FakeJudge, completion, judge, records, the_rest


def test_what_is_asked_and_what_is_written(files):
    with FakeJudge("8 6.5\nThe first one is better.") as fake:
        outcome = review_pairs(judge(fake), **files)
    assert (outcome.reviews, outcome.found, outcome.failed) == (6, 0, 0)
    assert len(fake.seen) == 6
    assert {path for path, _, _ in fake.seen} == {"/v1/chat/completions"}
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, headers, _ in fake.seen)
    body = next(body for _, _, body in fake.seen if "What is 4?" in body["messages"][1]["content"])
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.2, 1024)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"].startswith(
        "[Context]\nPicture 2.\n\n[Question]\nWhat is 4?\n\n"
        "[Assistant 1]\ngpt4 says 4\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nours says 4\n\n[End of Assistant 2]\n\n[System]\n"
    )
    record = next(record for record in records(files["output"]) if record["question_id"] == 4)
    assert record["tuple"] == [8.0, 6.5]
    assert record["category"] == "llava_bench_detail"
    assert (record["id"], record["answer1_id"], record["answer2_id"]) == (5, "gpt4-x", "ours-x")
    assert record["content"] == "8 6.5\nThe first one is better."
    assert record["messages"] == body["messages"]
    assert record["judge"] == {
        "model": "judge",
        "returned": "judge-2026-01-01",
        "url": fake.url,
        "request": {"temperature": 0.2, "max_tokens": 1024},
    }
    assert record["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])


def test_both_orders_are_mapped_back(files):
    def prefers_the_first_and_ours(number, body):
        ours_first = "[Assistant 1]\nours" in body["messages"][1]["content"]
        return Answer("9 4" if ours_first else "6 7")

    with FakeJudge(prefers_the_first_and_ours) as fake:
        review_pairs(judge(fake), **files, both_orders=True)
    found = records(files["output"])
    assert len(found) == 12
    assert {(record["variant"], *record["tuple"]) for record in found} == {
        ("reference first", 6, 7),
        ("ours first", 4, 9),
    }
    assert {record["answer1_id"] for record in found} == {"gpt4-x"}
    summary = summarize(files["output"])
    everything = summary.groups[0]
    assert everything.values["reference"].value == pytest.approx(50)
    assert everything.values["ours"].value == pytest.approx(80)
    assert everything.values["relative"].value == pytest.approx(160)
    # the reference leads by -1 when first and by -5 when second: each place is worth 2
    assert summary.position_bias == pytest.approx(2)


def test_no_more_than_so_many_at_once(files):
    with FakeJudge(lambda n, body: Answer("8 7", silent=0.1)) as fake:
        review_pairs(judge(fake, concurrency=2), **files)
    assert fake.most == 2


def by_question(number, body):
    digit = int(re.search(r"What is (\d)", body["messages"][1]["content"])[1])
    return Answer(f"{digit + 1} {digit + 2}\nword é")


def test_a_torn_file_goes_on_to_the_same_records(files):
    with FakeJudge(by_question) as fake:
        review_pairs(judge(fake, concurrency=1), **files)
    whole = files["output"].read_bytes()
    wanted = sorted(map(the_rest, records(files["output"])), key=lambda r: r["question_id"])
    ends = [0, *(match.end() for match in re.finditer(b"\n", whole))]
    for cut in [0, 1, 12, 40, ends[1] - 1, ends[1], ends[1] + 5, ends[3] - 30, ends[3], len(whole) - 1]:
        files["output"].write_bytes(whole[:cut])
        have = sum(end - 1 <= cut for end in ends[1:])  # a line that lacks only its end is whole
        with FakeJudge(by_question) as fake:
            outcome = review_pairs(judge(fake), **files)
        assert (outcome.found, len(fake.seen)) == (have, 6 - have), cut
        found = sorted(map(the_rest, records(files["output"])), key=lambda r: r["question_id"])
        assert found == wanted, cut


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(files, tmp_path, how):
    started = threading.Event()

    def slow(number, body):
        if number == 3:
            started.set()
        return Answer(by_question(number, body).text, silent=0.0 if number < 3 else 20.0)

    arguments = ["review", "--questions", files["questions"], "--context", files["context"], "--answers",
                 *files["answers"], "--output", files["output"], "--judge-model", "judge"]  # fmt: skip
    with FakeJudge(slow) as fake:
        command = [*map(str, arguments), "--judge-url", fake.url, "--concurrency", "1"]
        process = subprocess.Popen([sys.executable, "-m", "adaptprune", *command], stdout=-1, stderr=-1)
        assert started.wait(60)
        process.send_signal(how)
        out, err = process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130), err
    assert KEY.encode() not in out + err + files["output"].read_bytes()
    assert len(records(files["output"])) == 3
    assert summarize(files["output"]).open == 3
    with FakeJudge(by_question) as fake:
        outcome = review_pairs(judge(fake), **files)
    assert (outcome.found, outcome.failed, len(fake.seen)) == (3, 0, 3)
    once = files["output"]
    other = {**files, "output": tmp_path / "at once.jsonl"}
    with FakeJudge(by_question) as fake:
        review_pairs(judge(fake), **other)
    left, right = summarize(once).to_dict(), summarize(other["output"]).to_dict()
    for name in ("groups", "reviews", "open", "returned", "position_bias"):
        assert left[name] == right[name]


def test_two_processes_cannot_write_at_once(files):
    inside, go = threading.Event(), threading.Event()

    def wait(number, body):
        inside.set()
        go.wait(10)
        return Answer("8 7")

    with FakeJudge(wait) as fake:
        first = threading.Thread(target=lambda: review_pairs(judge(fake, timeout=20), **files))
        first.start()
        assert inside.wait(10)
        with pytest.raises(AdaptPruneError, match=f"reviews.jsonl' is in use by process {os.getpid()} on "):
            review_pairs(judge(fake), **files)
        go.set()
        first.join()
    assert summarize(files["output"]).reviews["ok"] == 6


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "another"}, "the judge was 'judge'"),
        ({"temperature": 1.0}, "the judge was asked with {'temperature': 0.2"),
        ({"request": {"seed": 1}}, "the judge was asked with"),
    ],
)
def test_another_judge_needs_another_file(files, change, text):
    with FakeJudge("8 7") as fake:
        review_pairs(judge(fake), **files, limit=2)
        before = files["output"].read_bytes()
        options = {"model": "judge", "url": fake.url, **change}
        with pytest.raises(AdaptPruneError, match=re.escape(text)) as error:
            review_pairs(Judge(**options), **files)
    assert "reviews.jsonl, line 1" in str(error.value)
    assert "use another --output" in str(error.value)
    assert files["output"].read_bytes() == before


def test_other_answers_need_another_file_and_a_limit_can_grow(files):
    with FakeJudge("8 7") as fake:
        assert review_pairs(judge(fake), **files, limit=2).reviews == 2
        assert review_pairs(judge(fake), **files, limit=4).found == 2
        assert review_pairs(judge(fake), **files, limit=1).found == 1
        assert len(fake.seen) == 4
        text = files["answers"][1].read_text().replace("ours says 1", "ours says something else")
        files["answers"][1].write_text(text)
        with pytest.raises(AdaptPruneError, match="question 1, its context, an answer or the prompt has changed"):
            review_pairs(judge(fake), **files)


def test_request_fields_suit_models_that_refuse_the_usual_ones(files):
    fields = {"max_tokens": None, "temperature": None, "max_completion_tokens": 4096, "reasoning_effort": "low"}
    with FakeJudge("8 7") as fake:
        review_pairs(judge(fake, request=fields), **files, limit=1)
    body = fake.seen[0][2]
    assert set(body) == {"model", "messages", "max_completion_tokens", "reasoning_effort"}
    assert records(files["output"])[0]["judge"]["request"] == {
        "max_completion_tokens": 4096,
        "reasoning_effort": "low",
    }


def test_within_a_running_event_loop(files):
    import asyncio

    async def notebook():
        return review_pairs(judge(fake), **files)

    with FakeJudge("8 7") as fake:
        assert asyncio.run(notebook()).failed == 0


def test_half_characters_in_a_reply_are_written(files):
    with FakeJudge(lambda n, body: Answer(body=completion("8 7\nbad \ud83d end"))) as fake:
        review_pairs(judge(fake), **files, limit=1)
    assert records(files["output"])[0]["content"] == "8 7\nbad ? end"


def test_mm_vet(mm_vet, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"Grade it.\r\nRows:\r\n")
    grades = {"x?": "0.5", "y?": "1.0 |", "z?": "**0.2**"}

    def grade(number, body):
        return Answer(grades[body["messages"][0]["content"].splitlines()[-1][:2]])

    with FakeJudge(grade) as fake:
        review_mm_vet(judge(fake), **mm_vet, prompt=tmp_path / "prompt.txt")
    contents = sorted(body["messages"][0]["content"] for _, _, body in fake.seen)
    assert contents[0] == "Grade it.\nRows:\n\nx? | -1 <AND> -5 | -1 | "
    assert contents[1].endswith("\ny? | a <OR> b | b | ")
    assert {(body["temperature"], body["max_tokens"]) for _, _, body in fake.seen} == {(0.0, 16)}
    groups = {group.name: group for group in summarize(mm_vet["output"]).groups}
    assert list(groups) == ["all", "math", "ocr", "rec", "math+ocr"]
    values = {name: round(group.values["score"].value, 6) for name, group in groups.items()}
    # (0.5 + 1.0 + 0.2) / 3; (0.5 + 0.2) / 2; 1.0
    assert values == {"all": 56.666667, "math": 35.0, "ocr": 35.0, "rec": 100.0, "math+ocr": 35.0}


@pytest.mark.parametrize(
    "content", ["", "1.1", "-0.5", "1. The answer", "Correctness: 0.5", "0,5", ".5", "nan", "0.5 0.6"]
)
def test_a_grade_that_cannot_be_read_is_none(mm_vet, content):
    with FakeJudge(content) as fake:
        assert review_mm_vet(judge(fake), **mm_vet).failed == 3
    for record in records(mm_vet["output"]):
        assert record["status"] == "unparsable"
        assert "score" not in record
    assert len(fake.seen) == 3


def test_mm_vet_several_runs(mm_vet):
    with FakeJudge(lambda n, body: Answer("0.4" if n < 3 else "0.8")) as fake:
        review_mm_vet(judge(fake, concurrency=1), **mm_vet, runs=2)
    summary = summarize(mm_vet["output"])
    assert summary.variants == ["run 1", "run 2"]
    assert summary.runs == pytest.approx([40, 80])
    assert summary.groups[0].values["score"].value == pytest.approx(60)
    assert summary.groups[0].questions == 3


def test_the_command_line(files, mm_vet, monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["adaptprune", "review", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return exit_.value.code or 0, *capsys.readouterr()

    pair = ["--questions", files["questions"], "--context", files["context"], "--answers", *files["answers"],
            "--output", files["output"], "--judge-model", "judge"]  # fmt: skip
    with FakeJudge(lambda n, body: Answer("8 6" if n else "no idea")) as fake:
        where = ["--judge-url", fake.url]
        code, out, _ = call(*pair, *where, "--concurrency", "1", "--limit", "3")
        assert code == 1
        assert "1 of 3 reviews failed: run the same command again to repeat them" in out
        assert "75.0 (75.0-75.0)" in out
        code, out, _ = call(*pair, *where, "--limit", "3", "--json")
        found = json.loads(out)
        assert (code, found["found"], found["failed"]) == (0, 2, 0)
        assert found["summary"]["groups"][0]["relative"] == {"value": 75.0, "low": 75.0, "high": 75.0}
        assert found["summary"]["judges"] == {"judge": 3}
    with FakeJudge("0.5") as fake:
        vet = [f"--{name}={path}" for name, path in mm_vet.items()]
        code, out, _ = call("mm-vet", *vet, "--judge-model", "judge", "--judge-url", fake.url)
        assert code == 0
        assert "50.0 (50.0-50.0)" in out
    code, out, _ = call("summarize", files["output"], mm_vet["output"], "--markdown")
    assert code == 0
    assert "| all | 3 | 0 | 75.0 (75.0-75.0) | 80.0 (80.0-80.0) | 60.0 (60.0-60.0) |" in out
    assert "| math+ocr | 2 | 0 | 50.0 (50.0-50.0) |" in out
    code, out, _ = call("summarize", files["output"], mm_vet["output"], "--json")
    assert [one["graded"] for one in json.loads(out)] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--output", "x"], "missing option --questions"),
        (["--questions", "a", "--output", "x"], "missing option --answers"),
        (["mm-vet", "--questions", "a"], "missing option --results"),
        (["summarize"], "missing argument"),
        (["summarize", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
        (["summarise", "x"], "no such command 'summarise'"),
        (["--limit", "3", "summarize", "x"], "--limit stands before 'summarize'"),
        (["summarize", "x", "--json", "--markdown"], "choose one"),
        (["--questions", "a", "--answers", "b"], "answers"),
        (["--questions", "a", "--answers", "b", "c", "--output", "d", "--judge-model", "j"], "there is no file 'a'"),
        (["--questions", "a", "--answers", "b", "c", "--output", "d", "--judge-model", "j", "--request", "[1]"],
         "--request '[1]' is no json object"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["adaptprune", "review", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert text in err.lower()
    assert os.listdir(tmp_path) == []
