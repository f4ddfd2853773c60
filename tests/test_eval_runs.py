"""Runs over files: what is bad in them, what a kill leaves, sharding, batches, memory, protocol, the command line."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from adaptprune import AdaptPruneError
from adaptprune.cli import main
from adaptprune.engines import LocalEngine, Pruning, Sampling
from adaptprune.eval import api, speed
from adaptprune.eval.ahead import Failed, ahead, batches
from adaptprune.eval.answers import read
from adaptprune.prompts import Prompter, formats, question
from adaptprune.tabletop.export import export_llava
from adaptprune.testing.zoo import specimen
from tests.benchmarks import jpeg, lines, put

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pocket():
    return api.Model()


@pytest.fixture(scope="module")
def tabletop(tmp_path_factory) -> Path:
    """Sixteen questions about two pictures in LLaVA's jsonl, with the answers as a further field."""
    folder = tmp_path_factory.mktemp("tabletop")
    asked, answered = export_llava(folder, "test", 2)
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    known = [json.loads(line)["text"] for line in answered.read_text().splitlines()]
    keep = [{**row, "answer": answer} for row, answer in zip(rows, known, strict=True) if row["category"] != "caption"]
    lines(folder / "with-answers.jsonl", keep)
    lines(folder / "short.jsonl", keep[:6])
    return folder


def custom(folder, name="short.jsonl", **options):
    return api.make_tasks(["custom"], question_file=folder / name, image_folder=folder / "images", **options)[0]


def run(task, out, model, methods=("fastv",), ratios=(0.1,), **options):
    wanted = api.make_columns(methods, ratios, task)
    options = {"batch_size": 4, "max_new_tokens": 4, "examples": 0, **options}
    return api.evaluate(task, wanted, out, model=model, **options)


def test_a_custom_set_in_llavas_fields(tabletop, pocket, tmp_path):
    answers = tmp_path / "there" / "A.jsonl"
    result = run(custom(tabletop), tmp_path / "run", pocket, answers_file=str(answers), max_new_tokens=8)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    asked = [json.loads(line) for line in (tabletop / "short.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["prompt"]) for row in rows] == [(one["question_id"], one["text"]) for one in asked]
    assert {row["model_id"] for row in rows} == {"pocket fastv@0.1"}
    assert len({row["answer_id"] for row in rows}) == 6
    assert result.summary.rows[0].cells["total"].accuracy.value > 0.4  # the pocket model knows these
    engine = LocalEngine(*pocket.loaded)
    item = next(iter(custom(tabletop).items()))
    said = engine.ask(question(item.prompt, item.images()), Sampling(8, temperature=0.0), Pruning("none")).text
    assert json.loads((tmp_path / "run/llava/unpruned.jsonl").read_text().splitlines()[0])["text"] == said


def test_several_columns_need_several_answers_files(tabletop, pocket, tmp_path):
    with pytest.raises(AdaptPruneError, match="the answers of 2 columns do not fit one file 'A.jsonl': put {column}"):
        run(custom(tabletop), tmp_path / "x", pocket, ["fastv"], [0.1, 0.5], answers_file="A.jsonl")
    with pytest.raises(AdaptPruneError, match="' is a folder: name a file in it for --answers-file"):
        run(custom(tabletop), tmp_path / "x", pocket, answers_file=str(tmp_path))
    named = api._answers_files("A-{column}.jsonl", api.make_columns(["fastv"], [0.1, 0.5]))
    assert [str(path) for path in named.values()] == ["A-unpruned.jsonl", "A-fastv@0.1.jsonl", "A-fastv@0.5.jsonl"]
    assert [c.name for c in api._answers_files("A.jsonl", api.make_columns(["unpruned"], [0.1]))] == ["unpruned"]


def test_answers_in_batches_are_those_alone(tabletop, pocket, tmp_path):
    """float32; prompts of different lengths, so that rows are padded on the left."""
    task = custom(tabletop, limit=5)
    assert len({len(item.prompt) for item in task.items()}) > 2
    found = []
    for size in (1, 4):
        result = run(task, tmp_path / str(size), pocket, ["adaptprune"], [0.1], batch_size=size, max_new_tokens=5)
        found.append({p.name: p.read_bytes() for p in sorted((result.folder / "answers").iterdir())})
    assert len(found[0]) == 2
    assert found[0] == found[1]


def test_chunks_are_llavas_and_make_up_the_whole(tabletop, tmp_path):
    whole = [item.id for item in custom(tabletop, "with-answers.jsonl").items()]
    parts = [
        [i.id for i in custom(tabletop, "with-answers.jsonl", num_chunks=4, chunk_idx=k).items()] for k in range(4)
    ]
    size = -(-len(whole) // 4)
    assert [len(part) for part in parts[:-1]] == [size] * 3
    assert [name for part in parts for name in part] == whole
    limited = custom(tabletop, "with-answers.jsonl", limit=5, num_chunks=2, chunk_idx=1)
    assert [item.id for item in limited.items()] == whole[3:5]
    with pytest.raises(AdaptPruneError, match="chunk_idx=4 is not allowed: it is a whole number from 0 to 3"):
        custom(tabletop, num_chunks=4, chunk_idx=4)
    with pytest.raises(AdaptPruneError, match="limit=0 is not allowed"):
        custom(tabletop, limit=0)


def bad_folder(root: Path) -> Path:
    """A question file with a byte order mark, CRLF and everything that goes wrong, one good question at either end."""
    for number in (1, 2):
        put(root / f"images/{number}.jpg", jpeg(number))
    put(root / "images/cut.jpg", jpeg(1)[:900])
    put(root / "images/text.jpg", "this is no picture")
    put(root.parent / "outside.jpg", jpeg(1))
    rows = [
        {"question_id": 1, "image": "1.jpg", "text": "<image>\nIs it red?"},
        {"question_id": 2, "image": "cut.jpg", "text": "a"},
        {"question_id": 3, "image": "nowhere.jpg", "text": "b"},
        {"question_id": 1, "image": "2.jpg", "text": "the same id"},
        {"question_id": 5, "image": "text.jpg", "text": "c"},
        {"question_id": 6, "image": "2.jpg"},
        {"question_id": 7, "image": "2.jpg", "text": ["list"]},
        {"question_id": 8, "image": "../outside.jpg", "text": "d"},
        {"question_id": 9, "image": "2.jpg", "text": "e " * 5000},
        {"question_id": 10, "image": "2.jpg", "text": "\ud800 is half a letter"},
        {"question_id": 11, "text": "no picture at all"},
        {"question_id": 12, "image": "2.jpg", "text": "What colour is it?"},
    ]
    text = "\r\n".join(json.dumps(row) for row in rows[:6])
    more = "\r\n".join(json.dumps(row) for row in rows[6:])
    raw = b"\xef\xbb\xbf" + text.encode() + b"\r\n{broken\r\n\r\n[1, 2]\r\n\xff\xfe\r\n" + more.encode()
    return put(root / "q.jsonl", raw)


def test_bad_questions_are_told_counted_and_passed_over(pocket, tmp_path):
    file = bad_folder(tmp_path / "set")
    task = api.make_tasks(["custom"], question_file=file, image_folder=tmp_path / "set/images")[0]
    result = run(task, tmp_path / "run", pocket, batch_size=3, max_errors=1)
    why = {problem["id"]: problem["why"] for problem in result.summary.problems}
    asked = [line["id"] for line in read(tmp_path / "run/answers/unpruned.jsonl") if "error" not in line]
    assert asked == ["1", "1#3", "11", "12"]
    assert (result.summary.questions, result.summary.problem_count, len(why)) == (4, 11, 11)
    for name, text in {
        "2": "is damaged or cut off", "3": "there is no file",
        "5": "is not an image", "#5": "q.jsonl, line 6 has no 'text'", "#6": "q.jsonl, line 7 is not JSON",
        "#7": "q.jsonl, line 9 is a JSON list, not an object", "#8": "q.jsonl, line 10 is not UTF-8",
        "#9": "its 'text' is a list, not text", "8": "is outside of", "9": "tokens", "10": "half of a surrogate pair",
    }.items():  # fmt: skip
        assert text in why[name], (name, why[name])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["problems"]["count"] == 11
    assert [row["question_id"] for row in map(json.loads, (tmp_path / "run/llava/unpruned.jsonl").open())][-1] == 12


KILLED = """
import sys, time
from pathlib import Path
from adaptprune.eval import api, answers
folder, out, delay = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
task = api.make_tasks(["custom"], question_file=folder / "short.jsonl", image_folder=folder / "images")[0]
add = answers.Answers.add
def slow(self, lines):
    add(self, lines)
    print("batch", flush=True)
    time.sleep(delay)
answers.Answers.add = slow
api.evaluate(task, api.make_columns(["fastv"], [0.1]), out, batch_size=2, max_new_tokens=2, examples=0)
"""


def kill_at(batch: int, folder: Path, out: Path) -> None:
    """Start a run and kill it, without a word, right after its `batch`-th batch was written."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(out), "0.3"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    for _ in range(batch):
        assert started.stdout.readline() == "batch\n"
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL


def everything(out: Path) -> dict[str, bytes]:
    files = [path for kind in ("answers", "llava") for path in sorted((out / kind).iterdir())]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_killed_run_is_continued_to_the_same_bytes(tabletop, pocket, tmp_path):
    task, options = custom(tabletop), {"batch_size": 2, "max_new_tokens": 2}
    run(task, tmp_path / "whole", pocket, **options)
    kill_at(3, tabletop, tmp_path / "killed")
    left = sum(len(p.read_bytes().splitlines()) for p in (tmp_path / "killed/answers").iterdir())
    assert left == 6
    with (tmp_path / "killed/answers/fastv@0.1.jsonl").open("ab") as file:
        file.write(b'{"id": "3", "ans')  # a line that the kill cut
    run(task, tmp_path / "killed", pocket, **options)
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
    found = speed.read(tmp_path / "killed/speed/unpruned.jsonl")
    assert found.batches == 3
    with pytest.raises(AdaptPruneError, match="holds another run \\(batch_size was 2\\)"):
        run(task, tmp_path / "killed", pocket, batch_size=3, max_new_tokens=2)


def test_changed_questions_are_not_continued(tabletop, pocket, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "images").symlink_to(tabletop / "images")
    rows = (tabletop / "short.jsonl").read_text().splitlines()[:2]
    put(folder / "short.jsonl", "\n".join(rows))
    run(custom(folder), tmp_path / "run", pocket)
    put(folder / "short.jsonl", "\n".join(rows).replace("?", " ?"))
    with pytest.raises(AdaptPruneError, match="holds another run \\(settings.files.short.jsonl.bytes was"):
        run(custom(folder), tmp_path / "run", pocket)


def test_pictures_are_made_ahead_in_order_and_failures_stay_where_they_are():
    made, worked = [], []

    def make(number):
        time.sleep(0.01 * (number % 3))
        made.append(number)
        if number == 4:
            raise AdaptPruneError("four")
        return -number

    for group, found in ahead(batches(range(9), 2), str, make, lambda group: group[0] != 2, workers=3):
        worked.append((list(group), found))
        if len(worked) == 1:
            time.sleep(0.2)
            assert len(made) >= 5  # the next batches are there while the first is worked on
    assert [group for group, _ in worked] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert worked[0][1] == {"0": 0, "1": -1}
    assert worked[1][1] == {}
    assert worked[2][1] == {"4": Failed("four"), "5": -5}


def test_llavas_protocol():
    processor = copy.deepcopy(specimen("llava").processor)
    processor.chat_template = None
    prompter, plain = Prompter(processor, protocol="llava-1.5"), Prompter(processor)
    wide = Image.new("RGB", (8, 4), "red")
    assert prompter.text(question("Is it red?", [wide])) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nIs it red? ASSISTANT:"
    )
    assert plain.text(question("Is it red?", [wide])) == "USER: <image>\nIs it red? ASSISTANT:"
    padded = prompter.format.picture(processor, wide)
    assert padded.size == (8, 8)
    assert padded.getpixel((0, 0)) == padded.getpixel((7, 7)) == (122, 116, 104)
    assert padded.getpixel((0, 2)) == padded.getpixel((7, 5)) == (255, 0, 0)
    assert plain.format.picture(processor, wide) is wide
    whole, cut = (one.inputs(question("a", [wide]))["pixel_values"] for one in (prompter, plain))
    assert not torch.equal(whole, cut)  # what the processor is given

    def config(model_type, text_type, vocabulary):
        text = SimpleNamespace(model_type=text_type, vocab_size=vocabulary)
        return SimpleNamespace(model_type=model_type, get_text_config=lambda: text)

    assert formats.pick("auto", config("llava", "llama", 32064)) == "llava-1.5"
    assert formats.pick("auto", config("llava", "mistral", 32064)) == "model"
    assert formats.pick("auto", config("llava", "qwen3", 256)) == "model"
    assert formats.pick("llava-1.5", config("llava", "qwen3", 256)) == "llava-1.5"
    with pytest.raises(AdaptPruneError, match="unknown protocol 'lava'. Did you mean 'llava-1.5'"):
        formats.pick("lava", None)


def test_speed_is_worked_out_by_hand(tmp_path):
    file = tmp_path / "s.jsonl"
    speed.Batch(0, 2, 5.0, 10.0, 110.0, 12, 4000).write(file)
    speed.Batch(0, 2, 6.0, 20.0, 120.0, 12, 4000).write(file)  # run again after a kill
    speed.Batch(2, 1, 2.0, 8.0, 58.0, 6, 1000).write(file)
    with file.open("a") as out:
        out.write('{"start": 3, "ro')
    found = speed.read(file)
    assert found.first_token_ms == (26 + 10) / 2
    assert found.tokens_per_second == pytest.approx((10 + 5) / 0.150)
    assert found.kv_bytes == 5000 / 3
    assert speed.read(tmp_path / "none.jsonl") is None


def test_kv_bytes_are_those_of_the_prompt(tabletop, pocket, tmp_path):
    result = run(custom(tabletop, limit=1), tmp_path, pocket, batch_size=1)
    model, processor = pocket.loaded
    item = next(iter(custom(tabletop).items()))
    inputs = Prompter(processor, model).inputs(question(item.prompt, item.images()))
    with torch.inference_mode():
        cache = model(**inputs).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert result.summary.rows[0].speed.kv_bytes == held


def call(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["adaptprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_the_command_line_runs_and_lists(capsys, monkeypatch, tabletop, tmp_path):
    code, out, _ = call(capsys, monkeypatch, "eval", "--list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["pope"]["splits"][0]["questions"] == 8910
    assert "pope/coco/coco_pope_random.json" in rows["pope"]["splits"][0]["files"]
    code, out, _ = call(capsys, monkeypatch, "eval", "--list")
    assert "MME_Benchmark_release_version" in out
    arguments = ("eval", "custom", "--question-file", tabletop / "short.jsonl", "--image-folder", tabletop / "images",
                 "--limit", 2, "--examples", 1, "--out", tmp_path / "o", "--max-new-tokens", 3,
                 "--answers-file", tmp_path / "A.jsonl")  # fmt: skip
    code, out, err = call(capsys, monkeypatch, *arguments)
    assert code == 0, err
    assert "adaptprune" in out
    assert len((tmp_path / "A.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "o/examples.html").stat().st_size > 10_000
    code, out, _ = call(capsys, monkeypatch, *arguments, "--json")
    assert json.loads(out)["columns"][1]["tokens_kept"] == 57


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["popee"], "unknown task 'popee'. Did you mean 'pope'"),
        (["pope", "pope"], "the same task is asked for twice"),
        (["pope", "--pictures", "3"], "pope has no option --pictures"),
        (["tabletop", "--data", "x"], "tabletop has no option --data"),
        (["pope", "--split", "dev"], "pope has no split 'dev'. Allowed: test."),
        (["tabletop", "--max-new-tokens", "0"], "max_new_tokens=0 is not allowed"),
        (["tabletop", "--batch-size", "0"], "batch_size=0 is not allowed"),
        (["tabletop", "--examples", "-1"], "examples=-1 is not allowed"),
        (["pope", "--lmms", "mme"], "'pope' and --lmms 'mme' are two runs"),
        (["custom"], "the custom task needs --question-file and --image-folder"),
        (["custom", "--question-file", "nowhere.jsonl", "--image-folder", "."], "'nowhere.jsonl' is missing"),
        (["custom", "--question-file", ".", "--image-folder", "."], "'.' is no file: name the question file"),
    ],
)
def test_mistakes_are_one_line(capsys, monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, monkeypatch, "eval", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_a_pictures_encoding_is_counted_once_whoever_shares_it(pocket, tmp_path):
    put(tmp_path / "1.jpg", jpeg(1))
    rows = [{"question_id": number, "image": "1.jpg", "text": f"Is it {number} ?"} for number in range(4)]
    task = api.make_tasks(["custom"], question_file=lines(tmp_path / "q.jsonl", rows), image_folder=tmp_path)[0]
    run(task, tmp_path / "run", pocket, ["fastv"], [0.1, 0.5])
    files = sorted((tmp_path / "run/speed").iterdir())
    found = [json.loads(file.read_text()) for file in files]
    assert len(found) == 3
    assert len({one["encode_ms"] for one in found}) == 1
    assert all(0 < one["first_token_ms"] <= one["total_ms"] for one in found)
    assert all(one["encode_ms"] > 0 for one in found)
