"""Small sets in every benchmark's published layout, with Tabletop pictures: what a user's data folder looks like.

Each maker writes into ``root`` what the benchmark's own archives and LLaVA's eval.zip put there, four questions or so.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from adaptprune.tabletop import render, scene

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def jpeg(index: int) -> bytes:
    """A Tabletop picture, small, and not square every other time."""
    picture = render(scene("test", index)).resize((96, 96))
    buffer = io.BytesIO()
    (picture if index % 2 else picture.crop((0, 16, 96, 96))).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: Any) -> Path:
    """Bytes, text, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows))


def pope(root: Path) -> None:
    questions = []
    for start, category in ((0, "adversarial"), (10000000, "random"), (20000000, "popular")):
        labels = []
        for number in (1, 2):
            name = f"COCO_val2014_{number:012d}.jpg"
            put(root / "pope/val2014" / name, jpeg(number))
            asked = f"Is there a {'star' if number == 1 else 'cup'} in the image?"
            labels.append(
                {"question_id": number, "image": name, "text": asked, "label": "yes" if number == 1 else "no"}
            )
            questions.append(
                {"question_id": start + number, "image": name, "text": asked + SHORT, "category": category}
            )
        lines(root / f"pope/coco/coco_pope_{category}.json", labels)
    lines(root / "pope/llava_pope_test.jsonl", questions)


def mme(root: Path) -> None:
    release = root / "MME/MME_Benchmark_release_version"
    questions = []
    for category, name, apart in (("count", "000000006040.jpg", ""), ("artwork", "14777.jpg", "images/")):
        put(release / category / apart / name, jpeg(len(questions)))
        asked = {f"Is there one {thing} in this image?": yes for thing, yes in (("star", "Yes"), ("cup", "No"))}
        text = "".join(f"{question} Please answer yes or no.\t{answer}\n" for question, answer in asked.items())
        put(release / category / ("questions_answers_YN" if apart else "") / f"{Path(name).stem}.txt", text)
        image = f"{category}/{apart}{name}"
        questions += [
            {"question_id": image, "image": image, "text": question + SHORT, "category": category} for question in asked
        ]
    lines(root / "MME/llava_mme.jsonl", questions)


def gqa(root: Path) -> None:
    rows, truth = [], {}
    for number, (asked, answer, structure) in enumerate(
        [
            ("Is it overcast?", "no", "verify"),
            ("Who is wearing the dress?", "woman", "query"),
            ("Is it red?", "yes", "verify"),
        ]
    ):
        put(root / f"gqa/data/images/n{number}.jpg", jpeg(number))
        name = str(201307251 + number)
        rows.append({"question_id": name, "image": f"n{number}.jpg", "text": asked + SHORT, "category": "default"})
        truth[name] = {
            "answer": answer, "question": asked, "imageId": f"n{number}", "isBalanced": True,
            "types": {"structural": structure, "semantic": "attr", "detailed": "x"},
        }  # fmt: skip
    lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", rows)
    put(root / "gqa/data/testdev_balanced_questions.json", truth)


def vqav2(root: Path) -> None:
    rows = []
    for number in range(5):
        name = f"COCO_test2015_{number:012d}.jpg"
        put(root / "vqav2/test2015" / name, jpeg(number))
        rows.append(
            {
                "question_id": 262144000 + number,
                "image": name,
                "text": f"What is {number}?{SHORT}",
                "category": "default",
            }
        )
    lines(root / "vqav2/llava_vqav2_mscoco_test2015.jsonl", rows)
    lines(root / "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", [rows[3], rows[0], rows[1]])


def vqav2_val(root: Path) -> None:
    questions, annotations = [], []
    for number in range(3):
        put(root / f"vqav2/val2014/COCO_val2014_{number:012d}.jpg", jpeg(number))
        questions.append({"image_id": number, "question": "Is it a star?", "question_id": 1000 * number})
        people = [
            {"answer": "yes" if n < 4 else "no", "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)
        ]
        annotations.append({
            "question_id": 1000 * number, "image_id": number, "question_type": "is it", "answer_type": "yes/no",
            "multiple_choice_answer": "no", "answers": people,
        })  # fmt: skip
    put(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions, "data_type": "mscoco"})
    put(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def vizwiz(root: Path) -> None:
    unsure = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    rows, annotated = [], []
    for number in range(3):
        name = f"VizWiz_test_{number:08d}.jpg"
        put(root / "vizwiz/test" / name, jpeg(number))
        rows.append(
            {"question_id": number, "image": name, "text": f"What is this?{unsure}{SHORT}", "category": "default"}
        )
        val = f"VizWiz_val_{number:08d}.jpg"
        put(root / "vizwiz/val" / val, jpeg(number))
        people = [{"answer": "A Star." if n < 5 else "unsuitable", "answer_confidence": "yes"} for n in range(10)]
        annotated.append(
            {"image": val, "question": "What is this?", "answers": people, "answer_type": "other", "answerable": 1}
        )
    lines(root / "vizwiz/llava_test.jsonl", rows)
    put(root / "vizwiz/val.json", annotated)


def scienceqa(root: Path) -> None:
    rows: list[dict[str, Any]] = []
    problems = {}
    for number, (subject, grade, hint) in enumerate(
        [("natural science", "grade3", ""), ("social science", "grade8", "A map."), ("language science", "grade2", "")]
    ):
        name = str(4 + number)
        value = "Which one is it?\nA. star\nB. cup"
        value = f"Context: {hint}\n{value}" if hint else value
        problems[name] = {
            "question": "Which one is it?", "choices": ["star", "cup"], "answer": number % 2, "hint": hint,
            "image": None if number == 2 else "image.png", "task": "closed choice", "grade": grade, "subject": subject,
        }  # fmt: skip
        row: dict[str, Any] = {"id": name}
        if number != 2:
            put(root / f"scienceqa/images/test/{name}/image.png", jpeg(number))
            row["image"], value = f"{name}/image.png", f"<image>\n{value}"
        answer = {"from": "gpt", "value": "AB"[number % 2]}
        rows.append({**row, "conversations": [{"from": "human", "value": value}, answer]})
    put(root / "scienceqa/llava_test_CQM-A.json", rows)
    put(root / "scienceqa/problems.json", problems)
    put(root / "scienceqa/pid_splits.json", {"train": ["1"], "test": list(problems)})


def textvqa(root: Path) -> None:
    rows, data = [], []
    for number in range(2):
        image = f"003a8ae2ef43b90{number}"
        put(root / f"textvqa/train_images/{image}.jpg", jpeg(number))
        for asked in ("What is the brand of this camera?", "What is written?"):
            text = f"{asked}\nReference OCR token: DAKOTA, DIGITAL{SHORT}"
            rows.append({"question_id": image, "image": f"{image}.jpg", "text": text, "category": "default"})
            data.append({
                "question": asked.upper(), "image_id": image, "question_id": 34602 + len(data),
                "answers": ["dakota"] * 8 + ["Dakota digital", "nous"], "set_name": "val", "image_classes": [],
            })  # fmt: skip
    lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", rows)
    put(root / "textvqa/TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": data})


MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
           "comment", "split")  # fmt: skip


def mmbench(root: Path, folder: str = "mmbench", name: str = "mmbench_dev_20230712") -> None:
    """Two questions with all their rotations; text with a quote, a tab and a line break in it."""
    rows = []
    for index, options, right, hint in (
        (241, ["star", "cup", "cross"], "star", 'He said "look"\tthere\nand left.'),
        (252, ["red", "blue"], "blue", ""),
    ):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            picture = base64.b64encode(jpeg(index)).decode() if folder == "mmbench" or turn == 0 else str(index)
            rows.append([
                index + turn * 1000000, "What is it?", hint, *turned, *[""] * (4 - len(options)),
                "ABCD"[turned.index(right)], "identity_reasoning", picture, "scienceqa", "attribute_reasoning", "",
                "dev",
            ])  # fmt: skip
    path = put(root / folder / f"{name}.tsv", "")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([MMBENCH, *rows])


def mmbench_cn(root: Path) -> None:
    mmbench(root, "mmbench_cn", "mmbench_dev_cn_20231003")


def seed(root: Path) -> None:
    rows, questions = [], []
    names = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    for number, (kind, folder) in enumerate(
        [(1, "SEED-Bench-image"), (2, "SEED-Bench-image"), (10, "SEED-Bench-video-image")]
    ):
        image = f"{folder}/{number}_{kind}.png"
        put(root / "seed_bench" / image, jpeg(number))
        name = str(101669 + number)
        text = f"What is it?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}"
        rows.append({"question_id": name, "image": image, "text": text, "category": kind})
        questions.append({
            "answer": "ABC"[number], "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four",
            "data_id": str(number), "data_type": "video" if "video" in folder else "image", "question": "What is it?",
            "question_id": name, "question_type_id": kind,
        })  # fmt: skip
    lines(root / "seed_bench/llava-seed-bench.jsonl", rows)
    put(root / "seed_bench/SEED-Bench.json", {"questions": questions, "question_type": names})


def llava_bench(root: Path) -> None:
    folder = root / "llava-bench-in-the-wild"
    for number in (1, 2):
        put(folder / f"images/{number:03d}.jpg", jpeg(number))
    lines(folder / "questions.jsonl", [
        {"question_id": 0, "image": "001.jpg", "text": "What is this?", "category": "conv"},
        {"question_id": 1, "image": "001.jpg", "text": "Describe this photo in detail.", "category": "detail"},
        {"question_id": 2, "image": "002.jpg", "text": "Why?", "category": "complex"},
    ])  # fmt: skip


def mmvet(root: Path) -> None:
    for number in range(2):
        put(root / f"mm-vet/images/v1_{number}.png", jpeg(number))
    lines(root / "mm-vet/llava-mm-vet.jsonl", [
        {"image": f"v1_{number}.png", "text": "What is x in the equation?", "category": "conv", "question_id": number}
        for number in range(2)
    ])  # fmt: skip


def textvqa_no_ocr(root: Path) -> None:
    textvqa(root)


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (vqav2, gqa, vizwiz, scienceqa, textvqa, textvqa_no_ocr, pope, mme, mmbench, mmbench_cn, seed,
                  llava_bench, mmvet)
}  # fmt: skip


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as the Hugging Face hub has them; pictures are structs of bytes and path."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def cell(index: int) -> dict[str, Any]:
    """A picture in a parquet file."""
    return {"bytes": jpeg(index), "path": None}


def size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size
