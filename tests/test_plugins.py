"""What other packages register: used like our own, and broken ones are named in one line and break nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch

import adaptprune
from adaptprune import AdaptPruneError, Pruner, make_pruner, methods
from adaptprune.checks import called, fits
from adaptprune.methods import METHODS
from adaptprune.registry import Registry

SOUND = """
from __future__ import annotations
import torch
from dataclasses import dataclass
from adaptprune import Pruner
@dataclass(frozen=True)
class First(Pruner):
    start: int = 0
    name = "first"
    summary = "the [first] tokens"
    def select(self, tokens, num_keep):
        return torch.arange(num_keep)
"""
#: Entry of another package's method: its module's text (None: there is none), and what is said of it.
BROKEN = {
    "lost": (None, "No module named 'lost_module'"),
    "needs": ("import no_such_package_here", "No module named 'no_such_package_here'"),
    "typo": ("def (:", "SyntaxError: invalid syntax"),
    "fails": ("raise RuntimeError('a\\nlong story')", "RuntimeError: a"),
    "silent": ("raise ValueError", "ValueError: ValueError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "empty": ("", "has no attribute 'Thing'"),
    "function": ("def Thing(): pass", "it is no subclass of adaptprune.Pruner"),
    "foreign": ("class Thing: pass", "it is no subclass of adaptprune.Pruner"),
    "nameless": (SOUND.replace("First", "Thing"), "its name is 'first': write name = 'nameless' in Thing"),
    "demanding": (
        "from dataclasses import dataclass, field\nfrom adaptprune import Pruner\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Thing(Pruner):\n    size: int\n    name = 'demanding'\n",
        "it cannot be made without options, each needs a default",
    ),
    "moody": (
        "from adaptprune import Pruner\nclass Thing(Pruner):\n    name = 'moody'\n"
        "    @property\n    def needs(self): raise KeyError('mood')\n",
        "'mood'",
    ),
}  # fmt: skip


def distribution(folder: Path, package: str, entries: dict[str, str], group: str = "adaptprune.methods") -> None:
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages: one sound method, the broken ones, and one that has our own method's name."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "first_module.py").write_text(SOUND)
    distribution(folder, "sound-rows", {"first": "first_module:First"})
    for name, (text, _) in BROKEN.items():
        if text is not None:
            (folder / f"{name}_module.py").write_text(text)
        distribution(folder, f"has-{name}", {name: f"{name}_module:Thing"})
    distribution(folder, "thief", {"fastv": "first_module:First"})
    return folder


@pytest.fixture
def plugins(site, monkeypatch):
    """The registry of methods as a process with these packages has it."""
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    before = set(sys.modules)
    registry = Registry("method", {n: METHODS._targets[n] for n in ("fastv", "random")}, METHODS.group, METHODS._check)
    monkeypatch.setattr(methods, "METHODS", registry)
    monkeypatch.setattr("adaptprune.tables.METHODS", registry)
    yield registry
    for name in set(sys.modules) - before:
        if name.endswith("_module"):
            del sys.modules[name]


def test_every_kind_of_broken_plug_in_is_named_in_one_line(plugins):
    problems = plugins.problems()
    for name, (_, reason) in BROKEN.items():
        line = problems.pop(name)
        assert line.startswith(f"method {name!r} of package 'has-{name}' cannot be ")
        assert reason in line
        assert line.endswith(f"Mend or uninstall has-{name}.")
        assert "\n" not in line
        with pytest.raises(AdaptPruneError) as caught:
            make_pruner(name)
        assert str(caught.value) == line
    (clash,) = problems.values()
    assert clash.startswith("method 'fastv' of package 'thief' is left out: there is one of that name here.")


def test_broken_plug_ins_take_nothing_down(plugins, caplog):
    assert adaptprune.list_methods() == ["fastv", "random", "first"]
    assert (
        make_pruner("first:start=2").spec()
        == "first:keep_ratio=0.5,layer=2,budget=image,positions=original,key_bias=0.0,coordinate_tokens=0.0,start=2"
    )
    assert type(make_pruner("fastv")).__module__ == "adaptprune.methods.fastv"
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == len(BROKEN) + 1
    caplog.clear()
    assert "first" in adaptprune.list_methods()
    assert not caplog.records, "once"
    assert [row["name"] for row in adaptprune.tables.methods()] == ["fastv", "random", "first"]


def test_names_are_listed_without_imports(plugins):
    assert {"first", *BROKEN} <= set(plugins.names())
    assert "first_module" not in sys.modules


def test_two_packages_with_one_name(tmp_path, monkeypatch):
    (tmp_path / "first_module.py").write_text(SOUND)
    for package in ("one", "two"):
        distribution(tmp_path, package, {"first": "first_module:First"})
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry = Registry("method", {}, METHODS.group, METHODS._check)
    assert registry.usable() == ["first"]
    (line,) = registry.problems().values()
    assert "is left out: package" in line
    monkeypatch.delitem(sys.modules, "first_module")


def test_a_package_whose_metadata_cannot_be_read_hides_no_other(site, monkeypatch):
    broken = site / "damaged-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[adaptprune.methods]\nthis is no entry\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    assert "first" in Registry("method", {}, METHODS.group).names()


def command(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(Path(adaptprune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "adaptprune", *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_the_commands_name_them(site):
    listed = command(site, "methods", "--json")
    assert listed.returncode == 0
    assert "first" in [row["name"] for row in json.loads(listed.stdout)]
    lines = listed.stderr.splitlines()
    assert len(lines) == len(BROKEN) + 1
    assert all(line.startswith("warning: method '") for line in lines)
    table = command(site, "methods")
    assert table.returncode == 0
    assert "the [first] tokens" in table.stdout, "brackets are no markup"
    doctor = command(site, "doctor", "--no-models", "--json")
    assert doctor.returncode == 1, "something that was installed does not work"
    checks = json.loads(doctor.stdout)["checks"]
    assert checks["plug-in method lost"].startswith("method 'lost' of package 'has-lost' cannot be imported")
    assert sum(value is not None for value in checks.values()) == len(BROKEN) + 1
    used = command(site, "run", "--prompt", "Hi", "--method", "lost")
    assert (used.returncode, used.stdout) == (2, "")
    assert used.stderr.startswith("error: method 'lost' of package 'has-lost' cannot be imported")
    assert used.stderr.count("\n") == 1


def test_broken_tasks_and_families_of_other_packages(tmp_path):
    distribution(tmp_path, "bad-task", {"puzzle": "no_module:Puzzle"}, "adaptprune.tasks")
    distribution(tmp_path, "odd-task", {"riddle": "json:dumps"}, "adaptprune.tasks")
    distribution(tmp_path, "bad-family", {"my_vlm": "no_module:Mine"}, "adaptprune.families")
    tasks = command(tmp_path, "eval", "--list")
    assert (tasks.returncode, "tabletop" in tasks.stdout) == (0, True)
    assert "task 'puzzle' of package 'bad-task' cannot be imported" in tasks.stderr
    assert "task 'riddle' of package 'odd-task' cannot be used: it is no subclass" in tasks.stderr
    assert "Traceback" not in tasks.stderr
    rows = json.loads(command(tmp_path, "families", "--json").stdout)
    (mine,) = [row for row in rows if row["model_type"] == "my_vlm"]
    assert (mine["tier"], "of package 'bad-family' cannot be imported" in mine["detail"]) == ("refused", True)
    used = command(tmp_path, "eval", "puzzle", "--limit", "1")
    assert (used.returncode, used.stderr.count("\n")) == (2, 1)


# -- their options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed(Pruner):
    count: int = 1
    weight: float = 1.0
    label: str = "a"
    whole: bool = False
    mode: Literal["near", "far", 2] = "near"
    top: int | None = None
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] = (1.0, "x")
    anything: object = None

    name: ClassVar[str] = "typed"

    def select(self, tokens, num_keep):
        return torch.arange(num_keep)


@pytest.fixture
def typed(monkeypatch):
    monkeypatch.setitem(METHODS._targets, "typed", Typed)


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("count=many", "count='many' is not allowed: it is a whole number."),
        ("count=1.5", "count=1.5 is not allowed: it is a whole number."),
        ("count=True", "count=True is not allowed: it is a whole number."),
        ("weight=heavy", "weight='heavy' is not allowed: it is a number."),
        ("weight=None", "weight=None is not allowed: it is a number."),
        ("label=5", "label=5 is not allowed: it is a text (write label='5')."),
        ("whole=yes", "whole='yes' is not allowed: it is True or False."),
        ("whole=1", "whole=1 is not allowed: it is True or False."),
        ("mode=middle", "mode='middle' is not allowed: it is one of 'near', 'far', 2."),
        ("top=few", "top='few' is not allowed: it is a whole number or None."),
        ("sizes=3", "sizes=3 is not allowed: it is a tuple of which each is a whole number."),
        ("sizes=(1,two)", "sizes='(1,two)' is not allowed: it is a tuple of which each is a whole number."),
        ("pair=(1,)", "pair=(1,) is not allowed: it is a tuple of 2: a number, a text."),
        ("cuont=1", "unknown option 'cuont' for 'typed'. Did you mean 'count'?"),
        ("keep_ratio=2", "keep_ratio=2 is not allowed: it is the fraction"),
    ],
)
def test_options_are_checked_against_their_types(option, said):
    with pytest.raises(AdaptPruneError) as caught:
        make_pruner(f"typed:{option}")
    assert str(caught.value).startswith(said)


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    "options",
    [
        {"count": 3, "weight": 2, "label": "b c", "whole": True, "mode": "far", "top": 4, "sizes": (1, 2)},
        {"mode": 2, "top": None, "sizes": (), "pair": (2.5, "y"), "anything": 3},
        {"label": "5"}, {"label": "a,b=c"}, {"label": "it's"}, {"label": " "}, {"label": ""}, {"label": "(,"},
        {"weight": float("inf")}, {"label": "None"}, {"label": "'"}, {"label": "a\\"}, {"label": "x:y"},
    ],
)  # fmt: skip
def test_what_fits_goes_through_the_spec_and_back(options):
    made = make_pruner("typed", **options)
    assert all(getattr(made, name) == value for name, value in options.items())
    assert make_pruner(made.spec()) == made


def test_a_rule_that_refuses_in_its_own_words(monkeypatch):
    @dataclass(frozen=True)
    class Picky(Typed):
        name: ClassVar[str] = "picky"

        def __post_init__(self):
            super().__post_init__()
            if self.count > 3:
                raise ValueError("three at most")

    monkeypatch.setitem(METHODS._targets, "picky", Picky)
    with pytest.raises(AdaptPruneError, match="'picky' refuses count=4: three at most"):
        make_pruner("picky:count=4")
    with pytest.raises(AdaptPruneError, match="count='x' is not allowed: it is a whole number"):
        make_pruner("picky:count=x")


@pytest.mark.parametrize("method", ["adaptprune", "fastv", "random", "grid", "pool"])
def test_our_own_are_checked_alike(method):
    """Every option of every rule refuses a value of a type that it does not have."""
    for name in [field.name for field in dataclasses.fields(make_pruner(method))]:
        with pytest.raises(AdaptPruneError, match=f"{name}=\\[\\]"):
            make_pruner(method, **{name: []})


def test_types_that_nobody_can_tell_fit():
    assert fits(3, "a forward reference")
    assert called("a forward reference") == "a forward reference"
    assert not fits("x", list[int])
    assert fits([1], list[int])
