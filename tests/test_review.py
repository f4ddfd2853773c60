"""The review against a server that misbehaves in every way it can: what is asked, written, and never a score."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from adaptprune.cli import main
from adaptprune.errors import AdaptPruneError
from adaptprune.review import Judge, review_mm_vet, review_pairs, summarize
from adaptprune.review.judge import OPENAI_URL
from tests.fake_judge import Answer, FakeJudge, completion

KEY = "sk-very-secret-0123456789"
ERROR = b'{"error": {"message": "overloaded", "type": "server_error"}}'


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


def judge(fake, **options):
    return Judge("judge", fake.url, **{"timeout": 20.0, "retries": 2, "concurrency": 3, **options})


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def the_rest(record):
    """A record without what two runs cannot share."""
    return {name: value for name, value in record.items() if name != "date"} | {"judge": record["judge"]["model"]}


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


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(status=500, body=ERROR), "HTTP 500: overloaded"),
        (Answer(status=429, body=ERROR, headers={"Retry-After": "0.01"}), "HTTP 429: overloaded"),
        (Answer(status=429, body=ERROR, headers={"Retry-After": "9999"}), "HTTP 429: overloaded"),
        (Answer(status=503, body=b"<html>busy</html>"), "HTTP 503: <html>busy</html>"),
        (Answer(status=400, body=b'{"error": {"message": "no max_tokens here"}}'), "HTTP 400: no max_tokens here"),
        (Answer(body=completion("8 7")[:60]), "JSONDecodeError"),
        (Answer("8 7", cut=40), "no connection"),
        (Answer("8 7", silent=30), "no reply within 0.3 s, the last of 2 attempts"),
        (Answer("8 7", drip=0.05), "no reply within the deadline"),
        (Answer(body=b"<html>log in</html>"), "JSONDecodeError"),
        (Answer(body=b"null"), "no chat completion"),
        (Answer(body=b"[1, 2]"), "no chat completion: [1, 2]"),
        (Answer(body=b'{"choices": []}'), "no chat completion"),
        (Answer(body=b'{"error": {"message": "no credit"}}'), "no credit"),
    ],
)
def test_an_api_error_is_recorded_and_is_no_score(files, answer, error):
    with FakeJudge(lambda number, body: answer) as fake:
        # short only where time is the matter: a busy machine is slow, too
        limits = {"timeout": 0.3 if answer.silent else 20.0, "deadline": 1.0 if answer.drip else 60.0}
        quick = judge(fake, **limits, retries=1, concurrency=6)
        outcome = review_pairs(quick, **files)
    assert (outcome.reviews, outcome.failed) == (6, 6)
    found = records(files["output"])
    assert {record["status"] for record in found} == {"api_error"}
    for record in found:
        assert error in record["error"]
        assert "tuple" not in record
    summary = summarize(files["output"])
    assert summary.reviews == {"ok": 0, "api_error": 6, "unparsable": 0}
    assert (summary.groups[0].questions, summary.groups[0].failed) == (0, 6)
    assert summary.groups[0].to_dict()["relative"] == {"value": None, "low": None, "high": None}


def test_a_server_that_keeps_sending_is_left_at_the_deadline(files):
    with FakeJudge(lambda number, body: Answer("8 7", drip=0.05)) as fake:
        before = time.monotonic()
        outcome = review_pairs(judge(fake, timeout=60.0, deadline=0.5), **files, limit=1)
        assert 0.5 <= time.monotonic() - before < 20
    assert outcome.failed == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "the reply is empty"),
        ("I cannot see the image.", "not two scores"),
        ("8", "not two scores"),
        ("8 7 6", "not two scores"),
        ("8/10 7/10", "not two scores"),
        ("Assistant 1: 8, Assistant 2: 7", "not two scores"),
        ("-1 -1", "not two scores"),
        ("nan inf", "not two scores"),
        ("0 7", "off the scale of 1 to 10"),
        ("8 11", "off the scale"),
        ("1e1 7", "not two scores"),
        ("<think>8 7", "not two scores"),
    ],
)
def test_an_unparsable_reply_is_recorded_and_is_no_score(files, content, error):
    with FakeJudge(content) as fake:
        outcome = review_pairs(judge(fake), **files)
    assert outcome.failed == 6
    for record in records(files["output"]):
        assert record["status"] == "unparsable"
        assert error in record["error"]
        assert record["content"] == content
        assert "tuple" not in record
    assert summarize(files["output"]).groups[0].questions == 0


@pytest.mark.parametrize(
    "content", ["8 7", "8, 7\nbecause", " **8 7** \n", "(8.0, 7)", "8,7", "<think>9 9\n3 3</think>\n\n8 7\nSo."]
)
def test_a_reply_that_can_be_read(files, content):
    with FakeJudge(content) as fake:
        assert review_pairs(judge(fake), **files).failed == 0
    assert {tuple(record["tuple"]) for record in records(files["output"])} == {(8.0, 7.0)}


def test_a_refusal_is_not_a_score(files):
    with FakeJudge(lambda n, body: Answer(body=completion(None, refusal="I will not."))) as fake:
        review_pairs(judge(fake), **files)
    assert {(r["status"], r["content"]) for r in records(files["output"])} == {("unparsable", "I will not.")}


def test_a_failure_is_repeated_by_the_sdk_and_retry_after_is_obeyed(files):
    times = []

    def twice_busy(number, body):
        times.append(time.monotonic())
        if number == 0:
            return Answer(status=429, body=ERROR, headers={"Retry-After": "0.4"})
        return Answer(status=500, body=ERROR) if number == 1 else Answer("8 7")

    with FakeJudge(twice_busy) as fake:
        outcome = review_pairs(judge(fake, concurrency=1), **files, limit=1)
    assert outcome.failed == 0
    assert len(fake.seen) == 3
    assert times[1] - times[0] >= 0.4
    assert len(records(files["output"])) == 1


def test_no_more_than_so_many_at_once(files):
    with FakeJudge(lambda n, body: Answer("8 7", silent=0.1)) as fake:
        review_pairs(judge(fake, concurrency=2), **files)
    assert fake.most == 2


def test_a_wrong_key_ends_the_run_soon(files, tmp_path):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}."}}).encode()
    told = []
    with (
        FakeJudge(lambda n, body_: Answer(status=401, body=body)) as fake,
        pytest.raises(AdaptPruneError, match="failed 10 times in a row, last with: HTTP 401.*run this again") as error,
    ):
        review_pairs(judge(fake, concurrency=1), **files, both_orders=True, progress=lambda *n: told.append(n))
    assert len(fake.seen) == 10
    assert KEY not in str(error.value)
    assert told[0] == (0, 12, 0)
    assert told[-1] == (10, 12, 10)
    with FakeJudge("8 7") as fake:  # the failed ones are asked again
        assert review_pairs(judge(fake), **files, both_orders=True).failed == 0
    assert len(fake.seen) == 12
    assert summarize(files["output"]).reviews == {"ok": 12, "api_error": 0, "unparsable": 0}


def test_only_what_failed_is_asked_again(files):
    def nonsense_about_two(number, body):
        return Answer("?" if re.search("What is [14]", body["messages"][1]["content"]) else "8 7")

    with FakeJudge(nonsense_about_two) as fake:
        assert review_pairs(judge(fake), **files).failed == 2
    before = files["output"].read_bytes()
    with FakeJudge("5 5") as fake:
        outcome = review_pairs(judge(fake), **files)
    assert (outcome.found, outcome.failed, len(fake.seen)) == (4, 0, 2)
    assert files["output"].read_bytes().startswith(before)
    summary = summarize(files["output"])
    assert summary.reviews == {"ok": 6, "api_error": 0, "unparsable": 0}
    assert summary.groups[0].values["reference"].value == pytest.approx(70)  # (4 * 8 + 2 * 5) / 6 * 10


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
        out, err = process.communicate(timeout=20)
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
        with pytest.raises(AdaptPruneError, match="another process is writing"):
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


@pytest.mark.parametrize(
    "body",
    [
        completion(f"8 7\nYour key is {KEY}."),
        completion(f"Your key is {KEY}."),
        completion("8 7").replace(b"judge-2026-01-01", KEY.encode()),
        json.dumps({"error": {"message": "x" * 490 + KEY}}).encode(),
        KEY.encode(),
    ],
)
@pytest.mark.parametrize("status", [200, 403])
def test_the_key_is_nowhere(files, capfd, caplog, monkeypatch, tmp_path, body, status):
    caplog.set_level("DEBUG")
    with FakeJudge(lambda n, body_: Answer(status=status, body=body)) as fake:
        arguments = ["review", "--questions", files["questions"], "--context", files["context"], "--answers"]
        arguments += [*files["answers"], "--output", files["output"], "--judge-model", "j", "--judge-url", fake.url]
        monkeypatch.setattr(sys, "argv", ["adaptprune", *map(str, arguments)])
        with pytest.raises(SystemExit):
            main()
        assert KEY not in repr(judge(fake))
    assert fake.seen[0][1]["authorization"] == f"Bearer {KEY}"
    out, err = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for piece in (KEY, KEY[:12]):
        assert piece not in out + err + caplog.text
        assert piece.encode() not in written


@pytest.mark.parametrize("value", ["", "  ", "two words", "line\nbreak", "schlüssel", "bad\x7f"])
def test_a_key_that_cannot_be_one(files, monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(AdaptPruneError, match="environment variable MY_KEY") as error:
        review_pairs(Judge("j", "http://127.0.0.1:1/v1", "MY_KEY"), **files)
    assert not value.strip() or value not in str(error.value)


def test_no_key_is_needed_by_a_server_of_ones_own(files, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with FakeJudge("8 7") as fake:
        assert review_pairs(judge(fake), **files, limit=1).failed == 0
        monkeypatch.setenv("OPENAI_BASE_URL", fake.url)
        assert Judge("j").endpoint() == fake.url
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert Judge("j").endpoint() == OPENAI_URL
    with pytest.raises(AdaptPruneError, match="OPENAI_API_KEY is not set"):
        review_pairs(Judge("j"), **{**files, "output": files["output"].with_name("other.jsonl")})
    assert not files["output"].with_name("other.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": " "}, "judge_model is empty"),
        ({"url": "localhost:8000"}, "judge_url is no address"),
        ({"url": "http://"}, "judge_url is no address"),
        ({"url": "http://h:99999/v1"}, "judge_url is no address"),
        ({"url": f"http://me:{KEY}@h/v1"}, "may not hold a name, a password"),
        ({"url": f"http://h/v1?key={KEY}"}, "may not hold"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": 2.5}, "temperature=2.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"deadline": float("inf")}, "deadline=inf"),
        ({"retries": -1}, "retries=-1"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"request": {"stream": True}}, "may not set 'stream'"),
        ({"request": {"seed": float("nan")}}, "cannot be written as JSON"),
        ({"request": {"seed": {1, 2}}}, "cannot be written as JSON"),
    ],
)
def test_options_out_of_range(options, text):
    with pytest.raises(AdaptPruneError, match=re.escape(text)) as error:
        Judge(**{"model": "j", **options})
    assert KEY not in str(error.value)


def test_nobody_listens(files):
    with FakeJudge("8 7") as fake:
        gone = judge(fake)
    assert review_pairs(gone, **files).failed == 6
    assert all("no connection" in record["error"] for record in records(files["output"]))


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
