"""The official metrics, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptprune.eval.metrics import choice, gqa, mme, vqa, yes_no
from adaptprune.eval.metrics.groups import GroupMeans


@pytest.mark.parametrize(
    ("people", "answer", "expected"),
    [
        # 3 of 10 said it: leaving one of the three out leaves 2 (2/3), leaving one of the seven out leaves 3 (1)
        (["a"] * 3 + ["b"] * 7, "a", (3 * 2 / 3 + 7 * 1) / 10),
        (["a"] * 1 + ["b"] * 9, "a", (1 * 0 + 9 / 3) / 10),
        (["a"] * 2 + ["b"] * 8, "a", (2 / 3 + 8 * 2 / 3) / 10),
        (["a"] * 4 + ["b"] * 6, "a", 1.0),
        (["a"] * 10, "b", 0.0),
        ([], "a", 0.0),
    ],
)
def test_vqa_accuracy(people, answer, expected):
    assert vqa.accuracy(answer, people) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.sampled_from("abcd"))
def test_vqa_accuracy_is_the_mean_over_leaving_one_out(people, answer):
    subsets = [people[:i] + people[i + 1 :] for i in range(len(people))]
    assert vqa.accuracy(answer, people) == pytest.approx(
        sum(min(1, subset.count(answer) / 3) for subset in subsets) / len(subsets)
    )


@pytest.mark.parametrize(
    ("said", "normal"),
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("An apple, a pear", "apple pear"),
        ("1,000", "1000"),
        ("Yes!", "yes"),  # a mark at the end stands alone with nothing: becomes a space
        ("t-shirt", "t shirt"),  # a mark inside becomes a space
        ("rock - paper", "rock paper"),  # a mark beside a space goes
        ("3.5", "3.5"),  # a point inside a number stays
        ("U.S.A.", "usa"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("dog's", "dog 's"),  # the server takes 's for a word of its own
        ("what?\n", "what"),
        ("", ""),
    ],
)
def test_answers_are_normalised(said, normal):
    assert vqa.normalise(said) == normal


def test_contractions_are_completed():
    assert vqa.CONTRACTIONS["y'alld've"] == "y'all'd've"
    assert vqa.CONTRACTIONS["somebody'd"] == "somebodyd"  # an oddity of the server
    assert "its" not in vqa.CONTRACTIONS
    assert len(vqa.CONTRACTIONS) == 114


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_normalising_never_fails_and_lowers(text):
    assert vqa.normalise(text) == vqa.normalise(text).lower()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("There is no dog, sir.", "no"),
        ("It is not there", "no"),
        ("Yes, there is. No doubt.", "yes"),  # only the first sentence counts
        ("NO", "yes"),  # as the official script reads it
        ("nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_yes_and_no(answer, said):
    assert yes_no.said(answer) == said


def test_pope_by_hand():
    counts = yes_no.Confusion()
    for answer, truth, times in (("yes", "yes", 3), ("yes", "no", 1), ("no", "no", 4), ("no", "yes", 2)):
        for _ in range(times):
            counts.add(answer, truth)
    precision, recall = 3 / 4, 3 / 5
    assert counts.result() == pytest.approx(
        {
            "accuracy": 70.0,
            "precision": 100 * precision,
            "recall": 100 * recall,
            "f1": 100 * 2 * precision * recall / (precision + recall),
            "yes_ratio": 40.0,
        }
    )
    assert set(yes_no.Confusion().result().values()) == {0.0}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("No, it is", "no"),
        ("Not", "no"),
        ("a yes", "other"),
        ("", "other"),
        ("Maybe", "other"),
    ],
)
def test_mme_reads_the_first_four_letters(answer, said):
    assert mme.said(answer) == said


def test_mme_by_hand():
    """Three pictures of count: both right, one right, none right. One of OCR and one of code: both right."""
    scores = mme.Scores()
    for picture, right in (("a", (True, True)), ("b", (True, False)), ("c", (False, False))):
        for answer in right:
            scores.add("count", picture, answer)
    for subtask in ("OCR", "code_reasoning"):
        scores.add(subtask, "a", True)
        scores.add(subtask, "a", True)
    found = scores.result()
    assert found["count"] == pytest.approx(100 * 3 / 6 + 100 * 1 / 3)
    assert found["perception"] == pytest.approx(100 * 3 / 6 + 100 * 1 / 3 + 200)
    assert found["cognition"] == 200
    assert found["total"] == found["perception"] + 200
    assert len(mme.PERCEPTION) * 200 == 2000
    assert len(mme.COGNITION) * 200 == 800


OPTIONS = {"A": "a red star", "B": "blue", "C": "green", "D": "none of these"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("B. blue", "B"),
        ("The answer is D.", "D"),
        ("the correct answer is **C** because of this and that, and more of it, as one sees", "C"),
        ("A or B", None),  # two letters
        ("blue", "B"),
        ("It is Blue", "B"),
        ("blue and green", None),
        ("A car that has been here for a long time", None),  # a letter far from the end is an article
        ("E", None),
        ("", None),
        ("x" * 200 + "blue", None),  # much longer than the options together
    ],
)
def test_a_letter_is_read_as_mmbench_does(answer, letter):
    assert choice.letter(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), ("B. blue", "B"), ("The answer is C.", "C"), ("The answer is A. The answer is B.", None), ("B)", None),
     ("E", None), ("b", None), ("", None)],
)  # fmt: skip
def test_a_letter_is_read_as_llava_does_for_scienceqa(answer, letter):
    assert choice.scienceqa_letter(answer, list("ABCD")) == letter


def test_circular_evaluation_by_hand():
    """Question 1 is right in both rotations, 2 in the first only, 3 has one rotation and is wrong."""
    counted = choice.Circular()
    for question, rotation, right, group in (
        (1, 0, True, "x"), (1, 1, True, "x"), (2, 0, True, "y"), (2, 1, False, "y"), (3, 0, False, "y"),
    ):  # fmt: skip
        counted.add(question, rotation, right, [group])
    found = counted.result()
    assert found["circular"] == pytest.approx(100 / 3)
    assert found["vanilla"] == pytest.approx(200 / 3)
    assert (found["x"], found["y"]) == (100, 0)
    assert math.isnan(choice.Circular().result()["circular"])


def test_gqa_trims_and_lowers():
    assert gqa.prediction("Woman.") == "woman"
    assert gqa.accuracy("Yes..", "yes") == 1
    assert gqa.accuracy("a woman", "woman") == 0


def test_means_by_group():
    means = GroupMeans("all")
    means.add(1.0, ["x"])
    means.add(0.0, ["x", "y"])
    means.add(0.5)
    assert means.result() == {"all": 50.0, "x": 50.0, "y": 0.0}
