"""The review's files: what is read, what is refused and where the message points, and summaries worked out by hand."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptprune.errors import AdaptPruneError
from adaptprune.review import Judge, review_mm_vet, review_pairs, summarize
from adaptprune.review.files import MAX_LINE, read_by, read_jsonl, read_object
from adaptprune.review.journal import START, Journal
from adaptprune.review.mm_vet import load_prompt, parse_score
from adaptprune.review.pairwise import SYSTEM, Rule, comparisons, load_contexts, load_rules, parse_pair
from adaptprune.review.report import markdown, notes
from adaptprune.review.request import Unparsable

JUDGE = Judge("judge", "http://127.0.0.1:9/v1")
Q = '{"question_id": 0, "image": "a.jpg", "text": "What?", "category": "conv"}\n'
A = '{"question_id": 0, "prompt": "What?", "text": "This.", "answer_id": "x", "model_id": "m", "metadata": {}}\n'
C = '{"id": "a", "image": "a.jpg", "captions": ["One.", "Two."], "instances": [{"category": "cat", "bbox": [0.1, 0, 1.0, 1]}]}\n'  # noqa: E501


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_captions_and_boxes_as_the_visual_script_lays_them_out(write):
    asked = read_by(write("q", Q))
    answers = write("r", A), write("o", A.replace("This", "That"))
    (one,) = comparisons(asked, answers, write("c", C), load_rules(), None)
    assert one.category == "conv"
    assert one.messages("S", swapped=True) == [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": "[Context]\nOne.\nTwo.\n\ncat: [0.1, 0, 1.0, 1]\n\n[Question]\nWhat?\n\n"
            "[Assistant 1]\nThat.\n\n[End of Assistant 1]\n\n[Assistant 2]\nThis.\n\n[End of Assistant 2]\n\n"
            f"[System]\n{load_rules()['conv'].prompt}\n\n",
        },
    ]


def test_without_boxes_the_bench_rules_hold_and_without_context_the_default_one(write):
    asked, answers = read_by(write("q", Q)), (write("r", A), write("o", A))
    rules = load_rules()
    for context in ('{"image": "a.jpg", "caption": "One."}\n', '{"image": "a.jpg", "captions": ["One."]}\n'):
        (one,) = comparisons(asked, answers, write("c", context), rules, None)
        assert one.category == "llava_bench_conv"
        assert one.messages("", False)[1]["content"].startswith("[Context]\nOne.\n\n[Question]\n")
    asked = read_by(write("q", Q.replace("conv", "generic")))
    (one,) = comparisons(asked, answers, None, rules, None)
    assert (one.category, one.rule) == ("generic", rules["default"])
    assert one.messages("", False)[1]["content"].startswith("[Question]\n")


def test_an_answer_without_an_id_goes_by_its_question(write):
    plain = '{"question_id": 0, "text": "This.", "category": "conv"}\n'  # as qa90_gpt4_answer.jsonl has it
    (one,) = comparisons(read_by(write("q", Q)), (write("r", plain), write("o", A)), write("c", C), load_rules(), None)
    fields = one.request(SYSTEM, swapped=False, of=1).fields
    assert (fields["answer1_id"], fields["answer2_id"]) == (0, "x")


@pytest.mark.parametrize("content", ["\ufeff" + Q, Q.replace("\n", "\r\n"), "\n" + Q + "\n\n", Q.rstrip("\n")])
def test_marks_line_ends_and_blank_lines(write, content):
    assert read_by(write("q", content))["0"].data == json.loads(Q)


BAD = [
    ("questions", "", "is empty"),
    ("questions", Q + "{'a': 1}\n", "questions, line 2 is not JSON"),
    ("questions", Q + "[1]\n", "line 2 is not a JSON object"),
    ("questions", Q + "[" * 100_000, "line 2 is not JSON"),
    ("questions", Q.encode() + b'{"question_id": "\xff"}', "line 2: byte 18 is not UTF-8"),
    ("questions", Q + "\n" + Q, "line 3: question_id '0' is there already"),
    ("questions", Q + Q.replace(": 0", ': "0"'), "line 2: question_id '0' is there already"),
    (
        "questions",
        Q.replace("question_id", "id"),
        "line 1: 'question_id' has to be a whole number or a text, but there",
    ),
    (
        "questions",
        Q.replace(": 0", ": true"),
        "line 1: 'question_id' has to be a whole number or a text, but it is True",
    ),
    ("questions", Q.replace('"What?"', "7"), "line 1: 'text' has to be a text, but it is 7"),
    ("questions", Q.replace("What?", "\\ud83d"), "line 1: 'text' holds half a character"),
    ("questions", Q.replace('"conv"', "null"), "line 1: 'category' has to be a text, but it is None"),
    ("questions", Q.replace("conv", "convo"), "line 1: there is no rule for category 'convo'. Did you mean 'conv'?"),
    ("questions", Q.replace("a.jpg", "b.jpg"), "has no context for image 'b.jpg'"),
    ("questions", Q.replace('"image": "a.jpg", ', ""), "line 1: 'image' has to be a text, but there is none"),
    ("context", C + C, "context, line 2: image 'a.jpg' is there already"),
    ("context", C + '{"image": "b.jpg", "caption": "x"}', "has none: use one kind"),
    ("context", C.replace('["One.", "Two."]', "[1]"), "line 1: 'captions' has to be a text, but it is 1"),
    ("context", '{"image": "a.jpg"}', "line 1: 'caption' has to be a text"),
    ("context", C.replace("[0.1, 0, 1.0, 1]", "[0, 1]"), "'bbox' is four numbers, not [0, 1]"),
    ("context", C.replace("[0.1, 0, 1.0, 1]", "[0, NaN, 1, 1]"), "'bbox' is four numbers"),
    ("context", C.replace('[{"category"', '7, "x": [{"category"'), "'instances' is a list, not 7"),
    ("context", C.replace('"category": "cat", ', ""), "'category' has to be a text, but there is none"),
    ("reference", A.replace(": 0", ": 1"), "has no answer to question 0 (1 of 1 are missing)"),
    ("ours", A + A, "ours, line 2: question_id '0' is there already"),
    ("ours", A.replace('"This."', "null"), "ours, line 1: 'text' has to be a text"),
    ("rule", "{", "rule, line 1 is not JSON"),
    ("rule", "[]", "is not a JSON object"),
    ("rule", "{}", "has no rules"),
    ("rule", '{"conv": 1}', "rule 'conv': 'role' has to be a text"),
    ("rule", '{"conv": {"role": "A", "prompt": "p"}, "conv": {}}', "'conv' is there twice"),
    ("rule", '{"conv": {"role": "A", "prompt": "p", "scale": [10, 1]}}', "from the lower to the higher"),
    ("rule", '{"conv": {"role": "A", "prompt": "p", "scale": 5}}', "'scale' is a pair of numbers"),
    ("output", Q, "output, line 1 is not a record of a review"),
    ("output", Q.rstrip("\n"), "output, line 1 is not a record of a review"),
    ("output", START + b'"question_id": 0}\n', "output, line 1 is not a record of a review"),
]


@pytest.mark.parametrize(("where", "content", "text"), BAD)
def test_a_malformed_file_is_named_with_its_line(write, monkeypatch, where, content, text):
    good = {"questions": Q, "context": C, "reference": A, "ours": A, "rule": None, "output": None}
    paths = {
        name: write(name, given)
        for name, given in {**good, where: content}.items()
        if given is not None or name == where
    }
    before = paths[where].read_bytes()
    with pytest.raises(AdaptPruneError, match=re.escape(text)):
        review_pairs(
            JUDGE,
            questions=paths["questions"],
            context=paths["context"],
            answers=(paths["reference"], paths["ours"]),
            rule=paths.get("rule"),
            output=paths.get("output", paths["questions"].with_name("new")),
        )
    assert paths[where].read_bytes() == before
    assert not paths["questions"].with_name("new").exists()


def test_files_that_are_not_there(tmp_path):
    for path, text in [(tmp_path / "no.jsonl", "there is no file"), (tmp_path, "is a folder")]:
        for read in (lambda p: list(read_jsonl(p)), read_object, summarize, load_contexts):
            with pytest.raises(AdaptPruneError, match=text):
                read(path)
    with pytest.raises(AdaptPruneError, match="is a folder"), Journal(tmp_path):
        pass


def test_a_line_without_end_is_not_read_into_memory(tmp_path):
    with (tmp_path / "big").open("wb") as file:
        file.truncate(3 * MAX_LINE)
    with pytest.raises(AdaptPruneError, match="line 1 is longer than"):
        list(read_jsonl(tmp_path / "big"))


V = {"v1_0": {"imagename": "v1_0.png", "question": "x?", "answer": "1", "capability": ["ocr"]}}


@pytest.mark.parametrize(
    ("questions", "results", "prompt", "text"),
    [
        (V, {}, "p", "has no answer to v1_0 (1 of 1 are missing)"),
        (V, {"v1_0": "a", "v1_9": "b"}, "p", "answers 'v1_9', which is no question"),
        (V, {"v1_0": None}, "p", "'v1_0' has to be a text, but it is None"),
        ({}, {}, "p", "has no questions"),
        ({"v1_0": {**V["v1_0"], "capability": []}}, {"v1_0": "a"}, "p", "'capability' is a list of names, not []"),
        ({"v1_0": {**V["v1_0"], "capability": "ocr"}}, {"v1_0": "a"}, "p", "'capability' is a list of names"),
        ({"v1_0": {"question": "x?"}}, {"v1_0": "a"}, "p", "question 'v1_0': 'answer' has to be a text"),
        (V, {"v1_0": "a"}, " \n", "is empty: it holds the prompt"),
    ],
)
def test_malformed_mm_vet_files(write, questions, results, prompt, text):
    with pytest.raises(AdaptPruneError, match=re.escape(text)):
        review_mm_vet(
            JUDGE,
            questions=write("mm-vet.json", json.dumps(questions)),
            results=write("results.json", "\ufeff" + json.dumps(results)),
            prompt=write("prompt.txt", prompt),
            output=write("x", "").with_name("out"),
        )


def test_our_own_words_ask_for_what_is_read():
    assert {"default", *(f"{p}{c}" for p in ("", "llava_bench_") for c in ("conv", "detail", "complex"))} == set(
        load_rules()
    )
    for rule in load_rules().values():
        assert (rule.role, rule.low, rule.high) == ("Assistant", 1, 10)
        assert "from 1 (" in rule.prompt
    *_, head, rule_line, first = load_prompt().split("\n")[:5]
    assert (head.count("|"), rule_line.count("|"), first.count("|")) == (3, 3, 3)
    rows = [line.split(" | ") for line in load_prompt().strip().split("\n")[4:]]
    assert all(len(row) == 4 and parse_score(row[3]) for row in rows)


@given(st.text(alphabet="0123456789 .,-+*_()[]/\n\teinfa<>think|;`", max_size=30) | st.text(max_size=40))
def test_whatever_the_judge_says_is_a_score_on_the_scale_or_none(reply):
    for parse in (parse_score, lambda text: parse_pair(text, Rule("A", "p"), swapped=False)):
        try:
            found = parse(reply)
        except Unparsable:
            continue
        low, high = (0, 1) if "score" in found else (1, 10)
        for value in found.get("tuple", [found.get("score")]):
            assert low <= value <= high


@given(st.floats(1, 10).map(lambda x: round(x, 2)), st.floats(1, 10).map(lambda x: round(x, 2)), st.booleans())
def test_scores_come_back_as_they_were_said(one, other, swapped):
    assert parse_pair(f"{one} {other}\nwhy", Rule("A", "p"), swapped)["tuple"] == (
        [other, one] if swapped else [one, other]
    )


def record(question, scores=None, variant="reference first", category="conv", status=None, **more):
    status = status or ("ok" if scores else "unparsable")
    made = {"format": "adaptprune-review-1", "question_id": question, "variant": variant, "status": status}
    made |= {"category": category, "judge": {"model": "j", "returned": "j-1"}, "messages": [], "of": 5, **more}
    return {**made, "tuple": scores} if scores else {"error": "the reply is empty", **made}


def dump(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_summary_worked_out_by_hand(tmp_path):
    rows = [
        record(0, [8, 4], category="conv"),
        record(1, None, category="conv"),
        record(2, [6, 6], category="detail", date="2026-01-02T00:00:00+00:00"),
        record(3, None, category="detail", status="api_error", error="HTTP 500"),
        record(1, [5, 10], category="conv", date="2026-01-03T00:00:00+00:00"),  # asked again
    ]
    summary = summarize(dump(tmp_path / "r.jsonl", rows))
    everything, conv, detail = summary.groups
    assert [group.name for group in summary.groups] == ["all", "conv", "detail"]
    assert [(group.questions, group.failed) for group in summary.groups] == [(3, 1), (2, 0), (1, 1)]
    # reference (8 + 6 + 5) / 3 and ours (4 + 6 + 10) / 3, times 10; relative 20 / 19
    assert everything.values["reference"].value == pytest.approx(190 / 3)
    assert everything.values["ours"].value == pytest.approx(200 / 3)
    assert everything.values["relative"].value == pytest.approx(100 * 20 / 19)
    assert conv.values["relative"].value == pytest.approx(100 * 14 / 13)  # not the mean of 50 and 200
    assert detail.to_dict()["ours"] == {"value": 60.0, "low": None, "high": None}  # one question: no interval
    assert summary.reviews == {"ok": 3, "api_error": 1, "unparsable": 0}
    assert (summary.failed, summary.open) == (1, 1)
    assert summary.errors == {"HTTP 500": 1}
    assert (summary.judges, summary.returned) == ({"j": 4}, {"j-1": 4})
    assert (summary.first, summary.last) == ("2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00")
    text = "\n".join(notes(summary))
    assert "1 of 4 reviews have no score (1 api_error; most often: HTTP 500)" in text
    assert "questions not reviewed yet: 1" in text
    # two questions: a draw holds the one, the other or both, so the ends of the interval are the two quotients
    assert conv.values["relative"].low == pytest.approx(50)
    assert conv.values["relative"].high == pytest.approx(200)
    again = summarize(dump(tmp_path / "s.jsonl", [*rows[2:], rows[0]]))
    assert [group.to_dict() for group in again.groups] == [group.to_dict() for group in summary.groups]


def test_a_question_needs_both_of_its_orders(tmp_path):
    rows = [
        record(0, [8, 4]),
        record(0, [6, 8], "ours first"),
        record(1, [10, 1]),
        record(1, None, "ours first"),
        record(2, [10, 1]),  # its other order is still to come
    ]
    summary = summarize(dump(tmp_path / "r.jsonl", rows))
    everything = summary.groups[0]
    assert (everything.questions, everything.failed, summary.open) == (1, 1, 3)
    assert everything.values["reference"].value == pytest.approx(70)
    assert everything.values["ours"].value == pytest.approx(60)
    assert summary.position_bias == pytest.approx((4 - -2) / 2)


def test_reviews_of_llavas_scripts(tmp_path):
    rows = [
        {"id": 1, "question_id": 0, "answer1_id": 0, "category": "conv", "content": "8 4", "tuple": [8.0, 4.0]},
        {"id": 2, "question_id": 1, "answer1_id": 1, "category": "conv", "content": "Sorry", "tuple": [-1, -1]},
    ]
    summary = summarize(dump(tmp_path / "r.jsonl", rows))
    assert summary.reviews == {"ok": 1, "api_error": 0, "unparsable": 1}
    assert summary.groups[0].values["relative"].value == pytest.approx(50)
    oldest = [{"review_id": "a", "question_id": n, "text": "", "score": [9.0, 8.5]} for n in range(2)]
    assert [group.name for group in summarize(dump(tmp_path / "o.jsonl", oldest)).groups] == ["all"]


def test_grades_and_the_spread_of_runs(tmp_path):
    def grade(question, score, run, abilities):
        made = record(question, None, f"run {run}", status="ok", capability=abilities, score=score)
        return {name: value for name, value in made.items() if name not in ("category", "error")}

    rows = [grade("a", 0.2, 1, ["ocr"]), grade("b", 0.6, 1, ["rec", "ocr"])]
    rows += [grade("a", 0.4, 2, ["ocr"]), grade("b", 1.0, 2, ["rec", "ocr"])]
    summary = summarize(dump(tmp_path / "g.jsonl", rows))
    values = {group.name: group.values["score"].value for group in summary.groups}
    assert values == pytest.approx({"all": 55, "ocr": 55, "rec": 80, "ocr+rec": 80})
    assert summary.runs == pytest.approx([40, 70])
    assert "2 runs: 40.0, 70.0; std 15.0" in notes(summary)
    assert "| ocr+rec | 1 | 0 | 80.0 |" in markdown([summary])


def test_judges_that_changed_under_way_are_told(tmp_path):
    rows = [record(0, [8, 4]), record(1, [8, 4], judge={"model": "j", "returned": "j-2"})]
    summary = summarize(dump(tmp_path / "r.jsonl", rows))
    assert any("more than one model answered" in line for line in notes(summary))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "holds no reviews"),
        ([json.loads(Q)], "line 1 is not a review"),
        ([record(0, [8, 4]), record(0, [8, 4])], "line 2: question 0 is reviewed twice (reference first)"),
        ([record(0, ["8", 4])], "line 1: the scores are damaged"),
        ([record(0, [8, 4, 4])], "line 1: the scores are damaged"),
        ([record(0, None, status="ok")], "line 1: the scores are damaged"),
        ([record(0, [8, 4]), record(1, None, status="ok", capability=["ocr"], score=1)], "keep them apart"),
        ([record(0, [8, 4], category=["a"])], "the category is damaged"),
        ([record(0, None, status="ok", capability=None, score=1)], "the category is damaged"),
        ([record(0, [8, 4], judge="j")], "line 1 is not a record of a review"),
    ],
)
def test_files_that_cannot_be_summed_up(tmp_path, rows, text):
    with pytest.raises(AdaptPruneError, match=re.escape(text)):
        summarize(dump(tmp_path / "r.jsonl", rows))


def test_a_run_under_way_can_be_summed_up(tmp_path):
    path = dump(tmp_path / "r.jsonl", [record(0, [8, 4]), record(1, [8, 4])])
    path.write_bytes(path.read_bytes()[:-20])
    assert summarize(path).groups[0].questions == 1
