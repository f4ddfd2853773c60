"""Any set of questions in LLaVA's jsonl: ``question_id``, ``image`` and ``text`` on each line, pictures in a folder.

If the first line has an ``answer``, too, all should: then the run says how often the two are the same, case and a full
stop at the end aside. ``image`` may be a list of several; a line without it is asked without a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from adaptprune.errors import AdaptPruneError
from adaptprune.eval import pictures
from adaptprune.eval.benchmark import Benchmark, Split, build, text_of
from adaptprune.eval.files import Bad, jsonl, need
from adaptprune.eval.metrics import gqa
from adaptprune.eval.task import Item


class Custom(Benchmark):
    """Question file and picture folder are named by the user.

    Parameters
    ----------
    question_file, image_folder : str or Path
    **options
        As for `Benchmark`.
    """

    name = "custom"
    title = "your own questions in LLaVA's jsonl"
    folders: ClassVar[tuple[str, ...]] = ()
    metric = "exact match, where the lines have an answer"
    splits: ClassVar[dict[str, Split]] = {"all": Split(0, {})}
    max_new_tokens = 1024

    def __init__(
        self, question_file: str | Path | None = None, image_folder: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if question_file is None or image_folder is None:
            raise AdaptPruneError("the custom task needs --question-file and --image-folder.")
        self.file, self.pictures = Path(question_file), Path(image_folder)
        if not need(self.file, "the question file").is_file():
            raise AdaptPruneError(f"{str(self.file)!r} is no file: name the question file (jsonl).")
        need(self.pictures, "the folder of pictures")
        first: dict[str, Any] = next((found[1] for found in jsonl(self.file) if not isinstance(found, Bad)), {})
        self.scored_by = "" if "answer" in first else "reference"

    def files(self) -> list[Path]:
        return [self.file]

    def read(self) -> Iterator[Item | Bad]:
        return build(jsonl(self.file), self._line)

    def _line(self, place: str, row: dict[str, Any]) -> Item:
        question_id, text = text_of(row, "question_id", "text")
        prompt = text.replace("<image>", "").strip()
        names = pictures.named(row)
        opened = partial(pictures.from_files, self.pictures, names)
        answer = text_of(row, "answer")[0] if row.get("answer") is not None else None
        if answer is None and not self.scored_by:
            raise ValueError("it has no answer, and the first line has one")
        kind = str(row.get("category", "all"))
        return Item(
            question_id, "+".join(names) or question_id, opened, prompt, answer, kind, question_id=row["question_id"],
            extra={"prompt": text},
        )  # fmt: skip

    def score(self, item: Item, answer: str) -> float | None:
        return None if item.expected is None else gqa.accuracy(answer, gqa.prediction(item.expected))
