"""Every command where its surroundings fail: closed streams, a reader that goes, a full disk, Ctrl-C, SIGTERM."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptprune
from adaptprune.cli import app, ends, main

POSIX = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals as POSIX has them")
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")

#: A command line of every kind that prints, and whether it does so as JSON or as rich's tables.
PRINTS = {
    "help": ["--help"],
    "version": ["--version"],
    "methods": ["methods"],
    "methods as JSON": ["methods", "--json"],
    "families": ["families"],
    "doctor": ["doctor", "--no-models"],
    "tasks": ["eval", "--list"],
    "bench": ["bench", "--decoder", "4x64", "--method", "random", "--keep-ratio", "0.5", "--rounds", "1"],
    "run": ["run", "--prompt", "What is this?", "--image", "example:wood", "--max-new-tokens", "3"],
    "run as JSON": ["run", "--prompt", "What is this?", "--json", "--max-new-tokens", "3"],
    "chat": ["chat", "--max-new-tokens", "3"],
    "compare": ["compare", "--prompt", "What is this?", "--image", "example:wood", "-m", "grid", "--rounds", "1"],
    **{f"help of {name}": [name, "--help"] for name in ("web", "serve", "gateway", "tabletop", "review")},
}
#: Those that need no second to start, for what is the same in all commands.
CHEAP = ("help", "version", "methods", "methods as JSON", "help of serve")


def shell(script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script of the shell in which "$@" is adaptprune with these words; chats are asked one question."""
    path = os.pathsep.join([str(Path(adaptprune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "adaptprune", *words]
    return subprocess.run(
        command, input="What is this?\n", capture_output=True, text=True, timeout=120, env=environment
    )


def test_every_command_is_in_the_table():
    app.add_commands()
    names = {str(command.name or command.callback.__name__) for command in app.app.registered_commands}
    names |= {str(group.name) for group in app.app.registered_groups}
    assert names == {words[0] for words in PRINTS.values() if not words[0].startswith("-")}


@POSIX
@FULL
@pytest.mark.parametrize("name", PRINTS)
def test_a_full_disk_is_one_line_and_exit_code_1(name):
    done = shell('"$@" > /dev/full', *PRINTS[name])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: standard output cannot be written: No space left on device."
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error") == 1


@POSIX
@pytest.mark.parametrize("name", CHEAP)
def test_closed_output(name):
    done = shell('"$@" >&-', *PRINTS[name])
    assert (done.returncode, done.stderr) == (1, "error: standard output cannot be written: Bad file descriptor.\n")


@POSIX
@pytest.mark.parametrize("name", [*CHEAP, "run", "chat", "families", "bench"])
def test_a_reader_that_has_gone_ends_the_program_without_a_word(name):
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', *PRINTS[name])
    assert done.returncode in (0, 141), "0: all was written before the reader went"
    assert "error" not in done.stderr.lower()
    assert "Traceback" not in done.stderr
    if name in ("run", "chat"):  # they write long after `true` has ended
        assert done.returncode == 141


@POSIX
def test_the_first_line_is_enough():
    done = shell('set -o pipefail; "$@" | head -1', "families", "--json")
    assert done.stdout == "[\n"
    assert done.returncode in (0, 141)
    assert done.stderr == ""


@POSIX
@pytest.mark.parametrize("name", CHEAP)
def test_without_standard_error(name):
    assert shell('"$@" 2>&-', *PRINTS[name]).returncode == 0
    assert shell('"$@" >&- 2>&- <&-', *PRINTS[name]).returncode == 1


@POSIX
def test_a_mistake_that_nobody_can_read_keeps_its_exit_code():
    for script in ('"$@" 2>&-', '"$@" 2>&- >&-', '"$@" 2>/dev/full' if Path("/dev/full").exists() else '"$@" 2>&-'):
        assert shell(script, "methods", "--nope").returncode == 2


@POSIX
def test_a_chat_without_standard_input_is_over():
    done = shell('"$@" <&-', *PRINTS["chat"])
    assert done.returncode == 0
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr


@POSIX
def test_a_closed_stream_is_not_taken_for_the_next_file(tmp_path):
    """Descriptor 1 is free when standard output is closed: what is printed must not land in the picture."""
    overlay = tmp_path / "kept.png"
    done = shell('"$@" >&-', *PRINTS["run"], "--overlay", str(overlay))
    assert done.returncode == 1
    if overlay.exists():
        assert overlay.read_bytes().startswith(b"\x89PNG")


@POSIX
@FULL
def test_an_overlay_on_a_full_disk_is_named(tmp_path):
    overlay = tmp_path / "kept.png"
    overlay.symlink_to("/dev/full")
    done = shell('"$@"', *PRINTS["run"], "--overlay", str(overlay))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: cannot write '{overlay}': No space left on device."
    assert "Traceback" not in done.stderr


def assert_quiet(err: str) -> None:
    """Nothing but what a command says of itself (the pocket model's note)."""
    assert not any(word in err for word in ("Traceback", "rror", "Exception", "Interrupt")), err


INTERRUPTED = (130, -signal.SIGINT)  # Python ends itself by the signal if it hit code that was being compiled


#: Says when Python itself has started: signals before that are Python's own affair.
BEGIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from adaptprune.cli import main
sys.argv[0] = "adaptprune"
print("begun", flush=True)
main()
"""


def stopped(number: int, seconds: float | None, *words: str) -> tuple[int, str]:
    """Exit code and errors of a command that is stopped after so many seconds; with None, once it says something."""
    path = os.pathsep.join([str(Path(adaptprune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "begun\n"
        if seconds is None:
            process.stdout.read(1)
        else:
            time.sleep(seconds)
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return process.returncode, err


#: Runs adaptprune, and presses Ctrl-C when the module that the first word names is about to be imported.
PRESS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
wanted = sys.argv.pop(1)
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from adaptprune.cli import main
sys.argv[0] = "adaptprune"
main()
print("to the end")
"""

RUN = ["run", "--prompt", "x", "--image", "example:wood"]


@POSIX
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("adaptprune.cli.ends", ["methods"]),
        ("typer", ["methods"]),
        ("rich.console", ["methods"]),
        ("adaptprune.cli.run", ["methods"]),
        ("adaptprune.tables", ["methods"]),
        ("torch._C", RUN),
        ("torch.nn", RUN),
        ("transformers", RUN),
        ("transformers.generation.utils", RUN),
        ("numba", RUN),
        ("adaptprune.models.loading", RUN),
        ("adaptprune.testing.selfcheck", ["doctor"]),
        ("torch.nn", ["doctor", "--no-models"]),
        ("uvicorn", ["serve"]),
        ("gradio", ["web"]),
    ],
)
def test_ctrl_c_is_quiet_however_early(module, words):
    """While typer, torch or transformers are imported: nothing is said, whatever they make of it."""
    done = shell('exec "$1" -c "$0" "${@:4}"'.replace("$0", "$PRESS"), module, *words, PRESS=PRESS)
    assert done.returncode in INTERRUPTED
    assert done.stdout == ""
    assert_quiet(done.stderr)


@POSIX
def test_ctrl_c_while_it_answers():
    code, err = stopped(signal.SIGINT, None, *RUN, "--max-new-tokens", "400")
    assert code in (*INTERRUPTED, 0)
    assert_quiet(err)


@POSIX
@pytest.mark.parametrize("seconds", [0, 1])
def test_sigterm_ends_it_at_once(seconds):
    code, err = stopped(signal.SIGTERM, seconds, "doctor", "--json")
    assert (code, err) == (-signal.SIGTERM, "")


def test_an_interrupt_that_a_library_turned_into_an_error_of_its_own(monkeypatch, capsys):
    def fails(**options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy: cannot load module more than once per process") from None

    monkeypatch.setattr(app, "app", fails)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert app.run() == 130
        monkeypatch.setattr(app, "app", lambda **options: 1)
        assert app.run() == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_defects_keep_their_traceback(monkeypatch):
    def fails(**options):
        raise ZeroDivisionError

    monkeypatch.setattr(app, "app", fails)
    with pytest.raises(ZeroDivisionError):
        app.run()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "x.json"), 1, "error: [Errno 13] Permission denied: 'x.json'\n"),
        (OSError(28, "No space left on device", "x"), 1, "error: [Errno 28] No space left on device: 'x'\n"),
        (OSError(5, "Input/output error"), 1, "error: standard output cannot be written: Input/output error.\n"),
        (adaptprune.AdaptPruneError("two\nlines"), 2, "error: two lines\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, said):
    def fails(**options):
        raise error

    monkeypatch.setattr(app, "app", fails)
    assert app.run() == code
    assert capsys.readouterr().err == said


def test_main_leaves_the_handler_of_ctrl_c_as_it_was(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["adaptprune", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_streams_that_are_there_are_left_alone(monkeypatch):
    here = io.StringIO()
    monkeypatch.setattr(sys, "stdout", here)
    ends.mend_streams()
    assert sys.stdout is here


def test_module_and_script_are_the_same_program():
    """`python -m adaptprune` calls itself adaptprune, as the script does."""
    script = Path(sys.executable).with_name("adaptprune")
    module = shell('"$@"', "run", "--help")
    assert "Usage: adaptprune run" in module.stdout
    assert "python -m" not in module.stdout
    if script.exists():
        assert subprocess.run([str(script), "run", "--help"], capture_output=True, text=True).stdout == module.stdout


# -- JSON -------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_what_is_laid_out_for_reading_is_the_same_json(value):
    assert json.loads(app._laid_out(value, "")) == value


def test_what_run_prints_as_json_fits_a_screen(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adaptprune", *PRINTS["run"], "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    out = capsys.readouterr().out
    assert len(json.loads(out)["report"]["samples"][0]["kept"]) > 200
    assert out.count("\n") <= 50


@POSIX
def test_ctrl_c_while_libraries_put_things_in_order():
    """At the very end, all has been said: Python would tell of the interrupt, and of whose work it was."""
    slow = "import atexit, time; atexit.register(time.sleep, 60)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", slow + BEGIN, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(adaptprune.__file__).parents[1])},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "begun\n"
        assert adaptprune.__version__ in process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert (process.returncode, err) == (-signal.SIGINT, "")
