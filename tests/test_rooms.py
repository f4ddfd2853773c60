"""The layout is the architecture: a file imports what stands lower in the house, and never what stands higher."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import adaptprune

PACKAGE = Path(adaptprune.__file__).parent
#: From the ground up; rooms of one floor do not know one another.
FLOORS = (
    ("_version", "errors"),
    ("registry",),
    ("checks", "cues", "devices", "lazily", "disk", "flops", "installed", "metadata", "report"),
    ("images", "ops", "pruner"),
    ("methods",),
    ("hooks/seams",),
    ("families",),
    ("hooks",),
    ("viz", "prompts"),
    ("models", "testing"),
    ("engines",),
    ("bench", "tables", "tabletop"),
    ("chat", "compare", "eval", "serve"),
    ("doctor", "review", "web"),
    ("cli",),
    ("__init__", "__main__", "assets"),
)
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: What no front end may know: how models and transformers are built.
INNER = {"hooks", "hooks/seams", "families"}
FRONT_ENDS = {"chat", "compare", "eval", "review", "serve", "web"}


def room(parts: tuple[str, ...]) -> str:
    return "/".join(parts[:2]) if parts[:2] == ("hooks", "seams") else parts[0]


def imported(path: Path) -> set[str]:
    """Rooms that a file imports from, anywhere in it; names for type checkers alone count, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adaptprune":
            parts = tuple(node.module.split(".")[1:])
            whole = PACKAGE.joinpath(*parts).is_dir()  # names of a package may be its modules
            found |= {room((*parts, each.name) if whole else parts) for each in node.names}
        elif isinstance(node, ast.Import):
            ours = [each.name for each in node.names if each.name.startswith("adaptprune.")]
            found |= {room(tuple(name.split(".")[1:])) for name in ours}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_is_imported_from_a_higher_floor(path):
    mine = room(path.relative_to(PACKAGE).with_suffix("").parts)
    for other in imported(path) - {mine}:
        if mine != "__init__":
            assert other in HEIGHT, f"{other} has no floor"
            assert HEIGHT[other] < HEIGHT[mine], f"{mine} imports {other}"
    if mine in FRONT_ENDS:
        assert not imported(path) & INNER


def test_every_room_has_a_floor():
    there = {room(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES}
    assert there <= set(HEIGHT)
    assert set(HEIGHT) - there == {"assets"} - there


def test_importing_the_package_is_light():
    """No server, page, cluster or engine comes with it."""
    heavy = ("gradio", "fastapi", "uvicorn", "openai", "ray", "vllm", "matplotlib", "llguidance")
    code = f"import sys, adaptprune; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
