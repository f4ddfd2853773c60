"""Tabletop as files: LLaVA's question and answer jsonl, or a folder that Hugging Face `datasets` loads.

Both are written picture by picture, so their size does not matter; the same arguments give the same bytes.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from adaptprune.tabletop.questions import QUESTION_TYPES, Question, questions
from adaptprune.tabletop.render import render
from adaptprune.tabletop.scenes import Scene, scene


def export_llava(
    folder: Path, split: str, pictures: int, progress: Callable[[], None] = lambda: None
) -> tuple[Path, Path]:
    """Write ``questions.jsonl``, ``answers.jsonl`` and ``images/`` as LLaVA's evaluation scripts read them.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    split : str
    pictures : int
        The first so many scenes of the split.
    progress : callable
        Called after every picture.

    Returns
    -------
    (Path, Path)
        The files of questions (``question_id, image, text, category``) and of reference answers
        (``question_id, prompt, text, answer_id, model_id, metadata``).
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    asked, answered = folder / "questions.jsonl", folder / "answers.jsonl"
    number = 0
    with asked.open("w", encoding="utf-8") as ask, answered.open("w", encoding="utf-8") as answer:
        for table, found in _scenes(split, pictures):
            name = f"{split}-{table.index:06d}.png"
            render(table).save(folder / "images" / name)
            for question in found:
                line = {"question_id": number, "image": name, "text": question.question, "category": question.type}
                ask.write(json.dumps(line) + "\n")
                reference = {
                    "question_id": number,
                    "prompt": question.question,
                    "text": question.answer,
                    "answer_id": f"{split}-{number}",
                    "model_id": "reference",
                    "metadata": {"type": question.type, "marks": sorted(question.marks)},
                }
                answer.write(json.dumps(reference) + "\n")
                number += 1
            progress()
    return asked, answered


def export_datasets(folder: Path, split: str, pictures: int, progress: Callable[[], None] = lambda: None) -> Path:
    """Write ``<split>/metadata.jsonl`` and its images, for ``datasets.load_dataset("imagefolder", data_dir=folder)``.

    One row per picture: image, questions, answers, types and marks (lists of the same length).
    Parameters are those of `export_llava`. Returns the metadata file.
    """
    place = folder / split
    place.mkdir(parents=True, exist_ok=True)
    metadata = place / "metadata.jsonl"
    with metadata.open("w", encoding="utf-8") as file:
        for table, found in _scenes(split, pictures):
            name = f"{table.index:06d}.png"
            render(table).save(place / name)
            row = {
                "file_name": name,
                "questions": [question.question for question in found],
                "answers": [question.answer for question in found],
                "types": [question.type for question in found],
                "marks": [sorted(question.marks) for question in found],
            }
            file.write(json.dumps(row) + "\n")
            progress()
    return metadata


def _scenes(split: str, pictures: int) -> Iterator[tuple[Scene, list[Question]]]:
    for index in range(pictures):
        table = scene(split, index)
        yield table, questions(table, types=QUESTION_TYPES)
