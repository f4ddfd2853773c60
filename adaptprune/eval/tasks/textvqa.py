"""TextVQA (arXiv 1904.08920): questions about writing in pictures, with or without OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from adaptprune.eval import pictures
from adaptprune.eval.benchmark import SHORT, Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, load_json, parquet
from adaptprune.eval.metrics import vqa
from adaptprune.eval.task import Item

OCR = "Reference OCR token: "
ANNOTATIONS = "TextVQA_0.5.1_val.json"


class TextVQA(Benchmark):
    """With OCR tokens, as LLaVA-1.5's published numbers are."""

    name = "textvqa"
    title = "TextVQA"
    folders: ClassVar[tuple[str, ...]] = ("textvqa",)
    metric = "VQA accuracy"
    splits: ClassVar[dict[str, Split]] = {
        "val": Split(
            5000,
            {
                "llava_textvqa_val_v051_ocr.jsonl": "LLaVA's question file (in its eval.zip)",
                ANNOTATIONS: "TextVQA's annotation file",
                "train_images": "TextVQA's folder of pictures, train_images,",
            },
        )
    }
    parquet = "validation"
    ocr = True

    def read(self) -> Iterator[Item | Bad]:
        if self.shards:
            return build(parquet(self.shards), self._row)
        people = {
            (str(found["image_id"]), found["question"].lower()): tuple(map(str, found["answers"]))
            for found in load_json(self.path(ANNOTATIONS))["data"]
        }
        return build(jsonl(self.path("llava_textvqa_val_v051_ocr.jsonl")), partial(self._line, people))

    def _line(self, people: dict[tuple[str, str], tuple[str, ...]], place: str, row: dict[str, Any]) -> Item:
        image_id, text = text_of(row, "question_id", "text")
        image, opened = pictures.of_row(self.path("train_images"), row)
        lines = text.split("\n")
        asked = next((line for line in lines if not line.startswith(OCR)), "")
        answers = people.get((image_id, asked.lower()))
        if answers is None:
            raise ValueError(f"{ANNOTATIONS} has no question {asked!r} about {image_id}")
        prompt = text if self.ocr else "\n".join(line for line in lines if not line.startswith(OCR))
        return self._item(f"{image_id}: {asked}", image, opened, prompt, answers, row["question_id"])

    def _row(self, place: str, row: dict[str, Any]) -> Item:
        image_id, question = text_of(row, "image_id", "question")
        read = f"\n{OCR}{', '.join(map(str, row['ocr_tokens']))}" if self.ocr else ""
        opened = pictures.from_parquet(row["image"], image_id)
        answers = tuple(map(str, row["answers"]))
        return self._item(f"{image_id}: {question}", image_id, opened, question + read + SHORT, answers, image_id)

    def _item(
        self, name: str, picture: str, opened: Any, prompt: str, people: tuple[str, ...], question_id: Any
    ) -> Item:
        return Item(name, picture, opened, prompt, tuple(map(vqa.normalise, people)), "all", question_id=question_id)

    def score(self, item: Item, answer: str) -> float:
        return vqa.accuracy(vqa.normalise(answer), item.expected)


class TextVQAWithoutOCR(TextVQA):
    """The same questions without the OCR tokens: what the model reads itself."""

    name = "textvqa_no_ocr"
    title = "TextVQA without OCR tokens"
    ocr = False
