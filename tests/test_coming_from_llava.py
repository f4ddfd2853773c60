"""Every command on docs/coming-from-llava.md is understood, and runs if it can run here."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from typer.main import get_command

import adaptprune
from adaptprune.cli.app import add_commands, app
from adaptprune.engines.client import Client, Request, data_url, message
from adaptprune.images import open_image
from adaptprune.models.placement import packs_four_bits
from tests.commands import run_here
from tests.review.fake_judge import FakeJudge

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-llava.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
#: What cannot run here, and why.
NOT_HERE = {
    "--device mps": "needs an Apple GPU",
    "CUDA_VISIBLE_DEVICES": "needs two GPUs",
    "--model-base": "needs a download; tests/test_loading_lora.py has adapters of its own",
    "eval pope": "needs a download; tests/test_tasks_layouts.py has files of its own",
    "--upstream": "needs SGLang; tests/test_serve_gateway.py puts another engine there",
}
HERE = [command for command in COMMANDS if not any(mark in command for mark in NOT_HERE)]
JUDGE = "8 6\nThe first one is better."


def words_of(command: str) -> list[str]:
    """Arguments, without variables in front and without the program's name."""
    words = shlex.split(command)
    while "=" in words[0]:
        words.pop(0)
    assert words.pop(0) == "adaptprune", command
    return words


def pocket(words: list[str]) -> list[str]:
    """The same with the small model, and with a picture of the package."""
    found = []
    model = False
    for word in words:
        model = word == "--model" or (model and not word.startswith("-"))
        if model and word != "--model":
            name, equals, _ = word.partition("=")
            word = f"{name}=pocket" if equals else "pocket"
        found.append("example:cloth" if word.endswith("view.jpg") else word)
    return found


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def command(words: list[str], text: str = "", code: int = 0) -> str:
        done = run_here(monkeypatch, capsys, *words, text=text)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    return command


@contextmanager
def started(words: list[str], folder: Path, ready: str) -> Iterator[str]:
    """A command that goes on until it is told to end; the address that it prints."""
    log = folder / f"{len(list(folder.iterdir()))}.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "adaptprune", *words], stderr=file, stdout=file, cwd=folder)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(ready + r" (http://[\w.:]+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def answer(url: str, model: str | None = None) -> str:
    """What a server says about the cloth, pruned."""
    client = Client(url)
    end = time.monotonic() + 60
    while True:  # a gateway hears of its workers a moment later
        names = [each.name for each in client.models()] if time.monotonic() > end else names_of(client)
        if names and (model is None or model in names):
            break
        assert time.monotonic() < end
        time.sleep(0.2)
    messages = [message("user", "What colour is the triangle?", [data_url(open_image("example:cloth"))])]
    *pieces, cost = client.stream(Request(model or names[0], messages, pruning={"keep_ratio": 0.25}))
    assert cost.visual_tokens_kept == 144
    return "".join(pieces)


def names_of(client: Client) -> list[str]:
    try:
        return [each.name for each in client.models()]
    except ValueError:
        return []


def chosen(*marks: str) -> list[list[str]]:
    """The page's commands that hold all marks, and can run here."""
    found = [pocket(words_of(command)) for command in HERE if all(mark in command for mark in marks)]
    assert found, marks
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def put(words: list[str], option: str, value: str) -> list[str]:
    """The command with another value for an option, or with the option added."""
    if option not in words:
        return [*words, option, value]
    place = words.index(option) + 1
    return [*words[:place], value, *words[place + 1 :]]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_understood(command):
    add_commands()
    group, words = get_command(app), words_of(command)
    while hasattr(group, "commands") and words and words[0] in group.commands:
        name, *words = words
        group = group.commands[name]
    context = group.make_context("adaptprune", list(words), resilient_parsing=False)
    assert not context.args or hasattr(group, "commands")


def test_every_command_has_a_test_that_runs_it_or_a_reason():
    kinds = {words_of(command)[0] for command in HERE}
    assert kinds == {"run", "chat", "web", "gateway", "serve", "eval", "review"}
    assert all(any(mark in command for command in COMMANDS) for mark in NOT_HERE)
    # what LLaVA's README has is on the page
    for name in ("run_llava", "load_pretrained_model", "eval_model", "model_vqa.py", "eval_gpt_review_visual.py",
                 "summarize_gpt_review.py", "serve.controller", "gradio_web_server", "sglang_worker", "model_worker",
                 "serve.cli", "--load-4bit", "--load-8bit", "--model-base", "mps", "CUDA_VISIBLE_DEVICES"):  # fmt: skip
        assert name in PAGE


def test_one_question(run):
    ((*words,),) = chosen("adaptprune run")
    assert "kept 57 of 576" in run(words)


def test_the_python_code_runs(capsys):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    code = code.replace("liuhaotian/llava-v1.5-7b", "pocket").replace(
        "https://llava-vl.github.io/static/images/view.jpg", "example:cloth"
    )
    exec(code, {})
    assert "kept 57 of 576 visual tokens" in capsys.readouterr().out


def quantised(words: list[str]) -> str:
    """What the pocket model, quantised as a command says, answers in this process; in four bit it is often wrong."""
    (option,) = [word for word in words if word.startswith("--load-")]
    model, processor = adaptprune.load(**{option.removeprefix("--").replace("load-", "load_in_"): True})
    text = "USER: <image>\nWhat colour is the triangle? ASSISTANT:"
    inputs = processor(images=open_image("example:cloth"), text=text, return_tensors="pt")
    with adaptprune.prune(model, "adaptprune", keep_ratio=0.25):
        output = model.generate(**inputs)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_chat_in_four_bit(run):
    ((*words,),) = chosen("adaptprune chat")
    assert "--load-4bit" in words
    if packs_four_bits():  # the pocket model is too narrow for this CPU's kernel
        assert "takes layers whose widths are multiples of 64" in run(words, code=2)
        return
    said = run([*words, "--keep-ratio", "0.25"], "What colour is the triangle?\n/quit\n")
    assert said == f"{quantised(words)}\n"


@pytest.mark.parametrize("words", chosen("adaptprune serve", "--load-"), ids=lambda words: words[3])
def test_a_quantised_worker(words, tmp_path):
    if "--load-4bit" in words and packs_four_bits():
        pytest.skip("bitsandbytes' 4-bit kernel for this CPU takes wider models only")
    with started(put(words, "--port", "0"), tmp_path, "running on") as url:
        assert answer(url) == quantised(words)


def test_the_demo_in_one_process(tmp_path):
    plain, two = chosen("adaptprune web --model")
    assert plain == ["web", "--model", "pocket"]
    with started([*two, "--port", "0", "--no-log"], tmp_path, "page at") as url:
        assert "adaptprune" in urlopen(url, timeout=30).read().decode()


def test_the_demo_in_several_processes(tmp_path):
    """Gateway, two workers and the page, in the page's own words but for the ports."""
    (gateway,) = chosen("adaptprune gateway")
    workers = chosen("--register")
    web = chosen("web --server")[0]
    address = f"http://127.0.0.1:{free_port()}"
    extra = ["--metrics-port", str(free_port())]
    with ExitStack() as stack:
        words = put(gateway, "--port", address.rpartition(":")[2])
        assert stack.enter_context(started([*words, *extra], tmp_path, "gateway at")) == address
        for worker in workers:
            words = put(put(worker, "--port", "0"), "--register", address)
            stack.enter_context(started(words, tmp_path, "running on"))
        assert answer(address, "pocket") == "orange"
        assert answer(address, "second") == "orange"
        words = [*put(web, "--server", address), "--port", "0", "--no-log"]
        url = stack.enter_context(started(words, tmp_path, "page at"))
        assert urlopen(url, timeout=30).status == 200


def test_answers_reviews_and_their_summary(run, tmp_path, monkeypatch):
    """The three steps one after the other, over files in LLaVA's layout."""
    (evaluate,) = chosen("eval custom")
    *_, review, summarize = chosen("adaptprune review")
    (tmp_path / "coco2014_val").mkdir()
    open_image("example:cloth").save(tmp_path / "coco2014_val" / "1.png")
    question = {"question_id": 0, "image": "1.png", "text": "What colour is the triangle?", "category": "conv"}
    box = {"category": "triangle", "bbox": [0.1, 0.1, 0.2, 0.2]}
    files = {
        "qa90_questions.jsonl": question,
        "caps_boxes_coco2014_val_80.jsonl": {"image": "1.png", "captions": ["A cloth."], "instances": [box]},
        "answer-file-ref.jsonl": {"question_id": 0, "text": "It is orange."},
        "rule.json": {"conv": {"role": "Assistant", "prompt": "Score both."}},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    run(evaluate)
    ours = json.loads((tmp_path / "answer-file-our.jsonl").read_text())
    assert (ours["question_id"], ours["text"]) == (0, "orange")
    with FakeJudge(JUDGE) as judge:
        words = put(review, "--judge-url", judge.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-tests")
        run(words)
        assert "orange" in json.dumps(judge.seen[0][2])
    assert "75" in run(summarize)  # 6 of 8
