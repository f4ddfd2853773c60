"""The lock, and the tools that run the tests on other versions."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from adaptprune.doctor import OPTIONAL
from tools import compat, lock, newest, outcomes, versions

ROOT = Path(__file__).parents[1]
NEW = {"python_full_version": "3.12.1", "python_version": "3.12", "sys_platform": "linux"}
OLD = {"python_full_version": "3.10.13", "python_version": "3.10", "sys_platform": "linux"}


def pyproject() -> dict:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text())


def test_what_make_installed_is_what_the_lock_says():
    """Nothing in .venv is outside the lock: else the same commands install something else next year."""
    if Path(sys.prefix).resolve() != ROOT / ".venv" or not (ROOT / ".venv" / ".dev").exists():
        pytest.skip("this Python is not the .venv that make has made")
    outside = versions.differences(versions.installed(), versions.locked())
    assert not outside, "not as locked; `make lock`, or `make clean` if it was installed by hand"


def test_a_package_outside_the_lock_is_found():
    pins = versions.locked(
        "# a comment\nnumpy==2.2.6 ; python_full_version < '3.11'\nnumpy==2.5.5\ntorch==2.13.0\n", NEW
    )
    assert pins == {"numpy": "2.5.5", "torch": "2.13.0"}
    here = {"torch": "2.13.0+cpu", "nvidia-cublas": "13.1", "triton": "3.7", "cuda-bindings": "13.4"}
    assert versions.differences({**here, "numpy": "2.5.5"}, pins) == []
    assert versions.differences({**here, "numpy": "2.5.4", "tritonclient": "2"}, pins) == [
        "numpy 2.5.4: 2.5.5 in the lock",
        "tritonclient 2: not in the lock",
    ]


def test_what_is_installed_is_read_from_metadata():
    found = versions.installed()
    assert {"torch", "transformers", "huggingface-hub", "prometheus-client"} <= set(found)
    assert not versions.OWN & set(found)


@pytest.mark.parametrize("environment", [OLD, NEW], ids=["3.10", "3.12"])
def test_the_lock_has_everything_within_the_ranges(environment):
    """What the package and its tests ask for by name is in the lock, for old and new Pythons, in a fitting version."""
    pins = versions.locked(environment=environment)
    project = pyproject()["project"]
    asked = [*project["dependencies"], *lock.HELD]
    asked += [text for name, extra in project["optional-dependencies"].items() if name != "lmms" for text in extra]
    for text in asked:
        need = Requirement(text)
        if need.name != "adaptprune" and (need.marker is None or need.marker.evaluate(environment)):
            assert need.specifier.contains(pins[need.name.lower()]), text


def test_the_lock_is_written_as_make_lock_writes_it():
    text = lock.LOCK.read_text()
    assert lock.cleaned(text) == text
    assert not [name for name in versions.locked(text) if lock.CUDA_ONLY.match(name)]


def test_the_build_backend_is_in_the_lock():
    assert lock.BUILD[0] == pyproject()["build-system"]["requires"][0]
    assert {"hatchling", "editables"} <= set(versions.locked())


def test_a_lock_holds_pins_only():
    text = "numpy==2.2.6 ; python_full_version < '3.11'\nnvidia-nvtx==13.0 ; sys_platform == 'linux'\ntriton==3.7.1\n"
    assert lock.cleaned(text) == lock.HEADER + "numpy==2.2.6 ; python_full_version < '3.11'\n"
    for line in ("--index-url https://example.org/simple", "-e .", "numpy>=2", "x @ file:///tmp/x.whl"):
        with pytest.raises(ValueError, match="not an exact version"):
            lock.cleaned(f"{text}{line}\n")


@pytest.mark.parametrize(
    ("given", "loose"),
    [
        ("transformers>=5.16.1,<5.25", "transformers>=5.16.1"),
        ("bitsandbytes>=0.48.2,!=0.49,<0.51", "bitsandbytes!=0.49,>=0.48.2"),
        ("torch==2.13.0", "torch>=2.13.0"),
        ("numpy==2.*", "numpy>=2"),
        ("rich~=13.9", "rich>=13.9"),
        ("tomli>=2,<3; python_version < '3.11'", 'tomli>=2; python_version < "3.11"'),
        ("fastapi[standard]", "fastapi[standard]"),
    ],
)
def test_upper_bounds_do_not_hold_beyond_the_lock(given, loose):
    assert newest.loosened(given) == loose


def test_beyond_the_lock_all_that_the_tests_need_is_installed():
    names = [Requirement(text).name for text in newest.wanted(newest.project())]
    assert {"torch", "transformers", "gradio", "smg", "fastapi", "peft", "bitsandbytes", "pytest"} <= set(names)
    assert "lmms-eval" not in names
    assert "adaptprune" not in names
    assert not [text for text in newest.wanted(newest.project()) if "<" in text.partition(";")[0]]
    assert newest.with_torch(["numpy", "torch>=2.6"], "torch==2.13.0") == ["torch==2.13.0", "numpy"]


def test_packages_that_cannot_be_installed_are_named():
    tried = []

    def attempt(requirements):
        tried.append(list(requirements))
        return "no wheel for this Python" if "b>=1" in requirements else ""

    assert newest.install(["torch", "a"], attempt) == []
    assert tried == [["torch", "a"]]
    assert newest.install(["torch", "a", "b>=1"], attempt) == ["b>=1: no wheel for this Python"]
    assert tried[2:] == [["torch"], ["torch", "a"], ["torch", "b>=1"]]
    del tried[:]
    assert newest.install(["b>=1", "a"], attempt) == ["b>=1: no wheel for this Python"]
    assert tried[1:] == [["b>=1"], ["a"]]


def test_newest_leaves_other_environments_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))  # these tests are also run in the one that it does change
    monkeypatch.setattr(newest, "pip", lambda *_: pytest.fail("something would have been installed"))
    assert newest.main([]) == 1
    assert "make newest" in capsys.readouterr().err


REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest">
<testcase classname="tests.test_cli.TestRun" name="test_a[1.5-x/y]" time="1"/>
<testcase classname="tests.test_cli" name="test_b"><skipped message="no GPU"/></testcase>
<testcase classname="tests.review.test_judging" name="test_c"><failure message="short">def test_c():
E   TypeError: no argument 'x'
E   AssertionError: later</failure></testcase>
<testcase classname="tests.review.test_judging" name="test_d"><error message="failed on setup"/></testcase>
<testcase classname="" name="tests.test_web"><error message="collecting">E   ImportError: gone</error></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_told_by_file(tmp_path):
    for name in ("tests/test_cli.py", "tests/review/test_judging.py", "tests/test_web.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    outcome = outcomes.read(REPORT, tmp_path)
    assert (outcome.passed, outcome.skipped, outcome.failed, outcome.good) == (1, 1, 3, False)
    assert outcome.lines() == [
        "tests/review/test_judging.py: 2 failed; TypeError: no argument 'x'",
        "tests/test_web.py: 1 failed; ImportError: gone",
    ]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder whose tests are run instead of ours."""
    monkeypatch.setattr(outcomes, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins of packages take seconds to import
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return tmp_path


def test_a_real_run_is_told_by_file(elsewhere):
    (elsewhere / "test_one.py").write_text(
        "def test_good():\n    pass\n\n\ndef test_bad():\n    raise OSError('gone')\n"
    )
    (elsewhere / "test_two.py").write_text("import no_such_module\n")
    outcome = outcomes.run(sys.executable, [])
    assert (outcome.passed, outcome.failed, outcome.stopped) == (1, 2, "")
    assert outcome.lines() == [
        "test_one.py: 1 failed; OSError: gone",
        "test_two.py: 1 failed; ModuleNotFoundError: No module named 'no_such_module'",
    ]


def test_a_run_that_stops_is_no_success(elsewhere):
    (elsewhere / "conftest.py").write_text("from json import no_such_name\n")
    outcome = outcomes.run(sys.executable, [])
    assert not outcome.good
    assert outcome.lines() == [f"pytest stopped: {outcome.stopped}"]
    assert "exit code 4" in outcome.stopped
    assert "cannot import name 'no_such_name'" in outcome.stopped


def test_the_tests_that_depend_on_transformers_exist():
    assert not [name for name in compat.TESTS if not (ROOT / name).is_file()]
    assert len(compat.TESTS) == len(set(compat.TESTS))


def test_a_missing_test_is_named(monkeypatch, capsys):
    monkeypatch.setattr(compat, "TESTS", [*compat.TESTS, "tests/test_gone.py"])
    assert compat.main(["5.16.1"]) == 1
    assert "no such tests: tests/test_gone.py;" in capsys.readouterr().err


def test_the_oldest_release_is_the_lower_bound():
    (need,) = [text for text in pyproject()["project"]["dependencies"] if text.startswith("transformers")]
    assert compat.ALWAYS[re.search(r">=([\d.]+)", need).group(1)].startswith("oldest")


def test_which_releases_are_run(monkeypatch):
    monkeypatch.setattr(compat, "locked", lambda: {"transformers": "5.24.0"})
    monkeypatch.setattr(compat, "available", lambda: ["5.24.1", "5.9.0"])
    assert compat.chosen([], before_locked=False) == ["5.16.1", "5.19.0", "5.24.0"]
    assert compat.chosen([], before_locked=True) == ["5.16.1", "5.19.0"]
    assert compat.chosen(["5.17.0"], before_locked=False) == ["5.17.0"]
    monkeypatch.setattr(compat, "available", lambda: ["6.0.0rc1", "5.25.1", "5.24.1"])
    assert compat.chosen([], before_locked=False) == ["5.16.1", "5.19.0", "5.24.0", "5.25.1"]
    assert compat.newer([], "5.24.0") is None


def test_requirements_that_are_out_of_range_come_along():
    have = {"huggingface-hub": "2.4.0", "numpy": "2.4.6", "tokenizers": "0.23.3rc1"}
    requires = [
        "huggingface-hub<2.0,>=1.5.0",
        "numpy>=1.17",
        "tokenizers<0.24,>=0.22",
        "typer",
        'torch; extra == "torch"',
    ]
    assert compat.unmet(requires, have) == ["huggingface-hub<2.0,>=1.5.0", "typer"]


def test_another_version_than_meant_is_a_failure(tmp_path):
    used = {"version": "5.16.1", "metadata": "5.16.1", "file": str(tmp_path / "transformers" / "__init__.py")}
    assert compat.mismatch(used, "5.16.1", tmp_path) == ""
    assert "imported" in compat.mismatch(used, "5.16.1", tmp_path / "elsewhere")
    assert "used transformers 5.16.1" in compat.mismatch(used, "5.24.0", tmp_path)
    assert "metadata of 5.24.0" in compat.mismatch({**used, "metadata": "5.24.0"}, "5.16.1", tmp_path)
    assert compat.mismatch({}, "5.16.1", tmp_path) == "no test imported transformers"


def test_results_are_merged_by_version():
    rows = [{"version": "5.9.0", "passed": 1}, {"version": "5.16.1", "passed": 2}]
    fresh = [{"version": "5.16.1", "passed": 3}, {"version": "5.10.0", "passed": 4}]
    assert [(row["version"], row["passed"]) for row in compat.merged(rows, fresh)] == [
        ("5.9.0", 1),
        ("5.10.0", 4),
        ("5.16.1", 3),
    ]


def test_runs_are_noted_in_the_results_and_in_the_readme(monkeypatch, tmp_path):
    for name in ("RESULTS", "README"):
        copy = tmp_path / getattr(compat, name).name
        copy.write_text(getattr(compat, name).read_text())
        monkeypatch.setattr(compat, name, copy)
    before = compat.README.read_text()
    for version, passed in (("5.16.1", 765), ("99.0.0", 1)):
        row = {"version": version, "passed": passed, "failed": 1, "skipped": 0}
        compat.write([row])
    rows = {row["version"]: row for row in json.loads(compat.RESULTS.read_text())["versions"]}
    assert rows["5.16.1"]["why"].startswith("oldest")
    assert rows["99.0.0"]["why"] == "newer than the lock"
    after = compat.README.read_text()
    assert f"| 5.16.1 | {compat.ALWAYS['5.16.1']} | 765 of 766 |" in after
    assert after.replace(compat.table(list(rows.values())), "") == before.replace(
        before.partition(compat.START)[2].partition(compat.END)[0].strip(), ""
    )


def test_the_readme_has_the_results():
    """The table is the one that the results give, with a row for each release that is always run."""
    rows = json.loads(compat.RESULTS.read_text())["versions"]
    readme = compat.README.read_text()
    assert compat.fill(readme, rows) == readme, "run `make compat WRITE=1`"
    assert {row["version"]: row["why"] for row in rows}.items() >= compat.ALWAYS.items()
    assert [row["version"] for row in rows if "locked" in row["why"]] == [compat.lock()]
    assert "| 1 | a | 7 of 9, 2 skipped |" in compat.table(
        [{"version": "1", "why": "a", "passed": 7, "failed": 2, "skipped": 2}]
    )


def test_every_package_of_an_extra_is_looked_for():
    tests = ("test", "dev")
    wanted = {
        Requirement(line).name
        for extra, lines in pyproject()["project"]["optional-dependencies"].items()
        if extra not in tests
        for line in lines
    }
    assert wanted - {"adaptprune"} <= set(OPTIONAL)
