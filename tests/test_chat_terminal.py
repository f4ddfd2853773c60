"""The chat as a program: questions from a pipe, and Ctrl-C and Ctrl-D at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time


def run(*arguments: str, text: str = "", **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "adaptprune", "chat", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False, **options)


def test_piped_questions(tmp_path):
    text = "What colour is the triangle?\n/prune 7\nWhat shape is the pink object?\n/save talk.json"
    done = run("--image", "example:cloth", "--keep-ratio", "0.1", text=text, cwd=tmp_path)
    assert done.stdout == "orange\nheart\n"
    notice, first, wrong, second, wrote = done.stderr.splitlines()
    assert "toy" in notice
    assert first.startswith("kept 57 of 576 visual tokens, read 587 of 587 tokens, first token ")
    assert wrong == "error: keep_ratio=7 is not allowed: use a number above 0 and at most 1."
    assert "read 12 of 600 tokens" in second
    assert wrote == f"wrote {tmp_path / 'talk.json'}"
    assert done.returncode == 2


def endless(checkpoint: str, folder) -> str:
    """A copy of the tiny model that never ends an answer."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 200_000
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    return str(folder)


def test_ctrl_c_stops_the_answer_and_not_the_program(checkpoint, picture, tmp_path):
    """At a real terminal: a long answer is stopped, the next one comes, Ctrl-D ends it."""
    main, side = pty.openpty()
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb"}
    command = [sys.executable, "-m", "adaptprune", "chat", "--model", endless(checkpoint, tmp_path / "model"),
               "--max-new-tokens", "100000", "--image", picture]  # fmt: skip
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env, start_new_session=True)
    os.close(side)
    seen = ""

    def until(wanted: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while not re.search(wanted, seen):
            assert time.monotonic() < end, seen
            assert process.poll() is None, seen
            if select.select([main], [], [], 0.1)[0]:
                seen += os.read(main, 65536).decode(errors="replace")

    try:
        until("/help lists commands")
        os.write(main, b"what is this ?\n")
        until(r"\bw\d")  # it writes words w0, w1, ...
        process.send_signal(signal.SIGINT)
        until("stopped")
        seen = ""
        os.write(main, b"/method none\n")
        until(r"method none[^>]*> ")
        time.sleep(0.3)  # until the line editor listens
        process.send_signal(signal.SIGINT)  # at the prompt: nothing but a hint
        until(r"/quit leaves\.\s+> ")
        time.sleep(0.3)
        os.write(main, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(main)
    history = next(tmp_path.rglob("chat-history"))
    assert "what is this ?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
