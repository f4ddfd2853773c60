"""VQAv2 (arXiv 1612.00837) and VizWiz (arXiv 1802.08218): ten people's answers to each question.

The test splits' answers are the server's secret: there the run writes the file to send in. The validation splits have
theirs and are scored here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import SERVER, SHORT, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, load_json
from adaptprune.eval.metrics import vqa
from adaptprune.eval.submission import JsonList
from adaptprune.eval.task import Item

TEST = "llava_vqav2_mscoco_test2015.jsonl"
ANNOTATIONS, QUESTIONS = "v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json"
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


class VQAv2(Benchmark):
    """Test-dev (for the server) or the validation set."""

    name = "vqav2"
    title = "VQAv2"
    folders: ClassVar[tuple[str, ...]] = ("vqav2",)
    metric = "VQA accuracy; test-dev: by the server, from the file written"
    splits: ClassVar[dict[str, Split]] = {
        "test-dev2015": Split(
            107394,
            {
                "llava_vqav2_mscoco_test-dev2015.jsonl": "LLaVA's question file (in its eval.zip)",
                TEST: "LLaVA's list of all questions that the server wants (in its eval.zip)",
                "test2015": "COCO's folder of pictures, test2015,",
            },
        ),
        "val2014": Split(
            214354,
            {
                QUESTIONS: "VQAv2's question file",
                ANNOTATIONS: "VQAv2's annotation file",
                "val2014": "COCO's folder of pictures, val2014,",
            },
        ),
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scored_by = SERVER if self.split == "test-dev2015" else ""

    def read(self) -> Iterator[Item | Bad]:
        if self.scored_by:
            return build(
                jsonl(self.path("llava_vqav2_mscoco_test-dev2015.jsonl")), partial(_ask, self.path("test2015"))
            )
        people = {
            found["question_id"]: (found["answers"], str(found.get("answer_type", "")))
            for found in load_json(self.path(ANNOTATIONS))["annotations"]
        }
        asked = load_json(self.path(QUESTIONS))["questions"]
        records = ((f"{QUESTIONS}, question {number}", row) for number, row in enumerate(asked))
        return build(records, partial(self._annotated, people))

    def _annotated(self, people: dict[Any, tuple[list[dict[str, Any]], str]], place: str, row: dict[str, Any]) -> Item:
        question_id, image_id, question = text_of(row, "question_id", "image_id", "question")
        if row["question_id"] not in people:
            raise ValueError(f"{ANNOTATIONS} has no question {question_id}")
        answers, kind = people[row["question_id"]]
        image = f"COCO_val2014_{int(image_id):012d}.jpg"
        opened = partial(pictures.from_files, self.path("val2014"), [image])
        expected = tuple(str(one["answer"]) for one in answers)
        return Item(question_id, image, opened, question + SHORT, expected, kind, question_id=row["question_id"])

    def score(self, item: Item, answer: str) -> float | None:
        """Both sides as the official evaluation has them: its punctuation rules, without the server's first step."""
        if item.expected is None:
            return None
        people = [one.replace("\n", " ").replace("\t", " ").strip() for one in item.expected]
        said = vqa.words(answer.replace("\n", " ").replace("\t", " ").strip())
        return vqa.accuracy(said, [vqa.words(one) for one in people])

    def submission(self, folder: Path, column: str) -> _Upload | None:
        return _Upload(folder / f"{column}.json", self.path(TEST)) if self.scored_by else None


class _Upload:
    """Every question of test2015 in its order, with an empty answer to those that were not asked."""

    def __init__(self, path: Path, wanted: Path) -> None:
        self._path, self._wanted, self._answers = path, wanted, dict[str, str]()

    def add(self, item: Item, answer: str) -> None:
        self._answers[str(item.question_id)] = vqa.normalise(answer)

    def close(self) -> None:
        def entry(item: Item, answer: str) -> dict[str, Any]:
            return {"question_id": item.question_id, "answer": answer}

        out = JsonList(self._path, entry)
        for item in build(jsonl(self._wanted), partial(_ask, self._wanted.parent)):
            if isinstance(item, Item):
                out.add(item, self._answers.get(item.id, ""))
        out.close()


class VizWiz(Benchmark):
    """Test (for the server) or the validation set; pictures and questions of blind people."""

    name = "vizwiz"
    title = "VizWiz"
    folders: ClassVar[tuple[str, ...]] = ("vizwiz",)
    metric = "VQA accuracy; test: by the server, from the file written"
    splits: ClassVar[dict[str, Split]] = {
        "test": Split(
            8000,
            {
                "llava_test.jsonl": "LLaVA's question file (in its eval.zip)",
                "test": "VizWiz's folder of pictures, test,",
            },
        ),
        "val": Split(4319, {"val.json": "VizWiz's annotation file", "val": "VizWiz's folder of pictures, val,"}),
    }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scored_by = SERVER if self.split == "test" else ""

    def read(self) -> Iterator[Item | Bad]:
        if self.scored_by:
            return build(jsonl(self.path("llava_test.jsonl")), partial(_ask, self.path("test")))
        asked = load_json(self.path("val.json"), list)
        return build(((f"val.json, question {number}", row) for number, row in enumerate(asked)), self._annotated)

    def _annotated(self, place: str, row: dict[str, Any]) -> Item:
        (question,) = text_of(row, "question")
        image, opened = pictures.of_row(self.path("val"), row)
        people = tuple(vqa.normalise(str(one["answer"])) for one in row["answers"])
        return Item(image, image, opened, question + UNSURE + SHORT, people, str(row.get("answer_type", "")))

    def score(self, item: Item, answer: str) -> float | None:
        return None if item.expected is None else vqa.accuracy(vqa.normalise(answer), item.expected)

    def submission(self, folder: Path, column: str) -> JsonList | None:
        if not self.scored_by:
            return None
        return JsonList(
            folder / f"{column}.json", lambda item, answer: {"image": item.picture, "answer": vqa.normalise(answer)}
        )


def _ask(images: Path, place: str, row: dict[str, Any]) -> Item:
    question_id, text = text_of(row, "question_id", "text")
    image, opened = pictures.of_row(images, row)
    return Item(question_id, image, opened, text, None, "all", question_id=row["question_id"])
