"""Writes constraints.txt: every package that `make demo` and `make test` install, in the version they install.

uv resolves for all Pythons and systems at once; it is fetched into a folder that is thrown away. `make lock` runs this
with nothing but the standard library, so that a lock that cannot be installed can still be replaced.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"

#: Held for a reason that the ranges do not know: machines without a GPU can have this release of torch as a small CPU
#: build. Raise it here.
HELD = ("torch==2.13.0",)
#: What pip needs to install the package itself in place: its build backend, and what that asks for.
BUILD = ("hatchling>=1.26", "editables~=0.3")
#: What only the CUDA builds of torch and their packages need. torch itself says which of those it takes.
CUDA_ONLY = re.compile(r"^(nvidia|cuda|triton)([-_]|$)", re.IGNORECASE)

HEADER = """\
# Every package that make installs, in the version it installs. Written by `make lock`, used by every make target;
# the package itself asks only for the ranges in pyproject.toml. Left out is what only the CUDA builds of torch need.
"""


def cleaned(text: str) -> str:
    """The resolver's output as a lock: pins only, without CUDA's, below a header.

    Raises:
        ValueError: for a line that is no exact pin (an option such as an index, a path), which has no place in a lock.
    """
    pins = [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for pin in pins:
        if not re.match(r"[A-Za-z0-9][\w.-]*==[^\s;]+( ; .+)?$", pin):
            raise ValueError(f"not an exact version of a package: {pin!r}")
    return HEADER + "".join(f"{pin}\n" for pin in pins if not CUDA_ONLY.match(pin.split("==")[0]))


def resolve() -> str:
    """The newest versions that pyproject.toml's ranges allow, in all extras that the tests need, as uv writes them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, "--target", str(place / "uv"), "uv"], check=True)
        (place / "held.txt").write_text("\n".join(HELD))
        (place / "build.txt").write_text("\n".join(BUILD))
        command = [str(place / "uv" / "bin" / "uv"), "--quiet", "pip", "compile", "--universal"]
        command += ["--python-version", "3.10", "--no-header", "--no-annotate", "--extra", "dev"]
        command += ["--constraints", str(place / "held.txt"), "pyproject.toml", str(place / "build.txt")]
        return subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    LOCK.write_text(cleaned(resolve()))
