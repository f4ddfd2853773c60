"""Writing whole or not at all, errors that name the file, and locks that tell who holds them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adaptprune import AdaptPruneError
from adaptprune.disk import Lock, WriteError, make_folder, write_text, write_whole, writing

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from adaptprune.disk import Lock
with Lock(Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "held\n"
    return started


def test_the_second_is_told_who_holds_a_lock_and_a_killed_holder_is_no_obstacle(tmp_path):
    path = tmp_path / "new" / ".lock"
    first = holder(path)
    try:
        told = f"the folder is in use by process {first.pid} on .*, since 20.* \\(-c .*lock\\): wait for it"
        with pytest.raises(AdaptPruneError, match=told), Lock(path, "the folder"):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    assert path.stat().st_size > 0  # it could not tidy up
    with Lock(path, "the folder"):
        with pytest.raises(AdaptPruneError, match=f"in use by process {os.getpid()} on "), Lock(path, "the folder"):
            pass
        with pytest.raises(AdaptPruneError, match="in use"), Lock(path, "the folder"):  # still
            pass
    assert path.read_bytes() == b""
    with Lock(path, "the folder"):
        pass


def test_a_holder_without_a_name_is_another_process(tmp_path):
    with Lock(tmp_path / "l", "x"):
        (tmp_path / "l").write_bytes(b"[")
        with pytest.raises(AdaptPruneError, match="x is in use by another process"), Lock(tmp_path / "l", "x"):
            pass


def test_a_file_system_without_locks_is_worked_on_without(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("adaptprune.disk._take", refuse)
    with Lock(tmp_path / "l", "x"), Lock(tmp_path / "l", "x"):
        pass


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    write_text(path, "old é\ud800\n")
    assert path.read_bytes() == "old é\\ud800\n".encode()

    def fail(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WriteError) as told:
        write_whole(path, fail)
    assert str(told.value) == f"cannot write {str(path)!r}: No space left on device."
    assert told.value.errno == errno.ENOSPC
    assert path.read_bytes().startswith(b"old")
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_a_full_disk_and_a_folder_that_cannot_be_made_are_named(tmp_path):
    with (
        pytest.raises(WriteError, match="cannot write '/dev/full': No space left on device."),
        writing(Path("/dev/full")),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write '.*file/below': Not a directory."):
        make_folder(tmp_path / "file/below")
    with (
        pytest.raises(WriteError, match="cannot write '.*file/.lock'|cannot write '.*file'"),
        Lock(tmp_path / "file/.lock", "x"),
    ):
        pass
