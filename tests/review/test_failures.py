"""A judge that misbehaves in every way it can: what is recorded, what is never a score, where the key never is."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest

from adaptprune.cli import main
from adaptprune.errors import AdaptPruneError
from adaptprune.review import Judge, review_pairs, summarize
from adaptprune.review.judge import OPENAI_URL
from tests.review.fake_judge import KEY, Answer, FakeJudge, completion, judge, records

ERROR = b'{"error": {"message": "overloaded", "type": "server_error"}}'


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
