"""One evaluation from start to end: load, run or continue, summarise, write every report."""

from __future__ import annotations

import inspect
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from adaptprune.checks import whole
from adaptprune.disk import Lock, write_text, write_whole
from adaptprune.errors import AdaptPruneError
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import UNPRUNED, USUAL, Column, columns
from adaptprune.eval.outcome import summarise, write_reports
from adaptprune.eval.page import write_page
from adaptprune.eval.report import plot_problem
from adaptprune.eval.runner import Runner
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import TASKS, Task
from adaptprune.installed import versions
from adaptprune.models import POCKET, load
from adaptprune.prompts.formats import AUTO, pick

MAX_ERRORS = 0.05
MOST_CHANGES = 4  # that a message names


@dataclass(frozen=True)
class Result:
    """What an evaluation found; everything is in its folder too."""

    summary: Summary
    folder: Path


@dataclass(frozen=True)
class Model:
    """A model that is loaded when it is first needed, and then kept for every task and column.

    Attributes
    ----------
    loading : mapping
        Arguments of `adaptprune.load`, as plain values (no torch.dtype). Default: the pocket model.
    """

    loading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it was asked for."""
        return str(self.loading.get("name_or_path") or POCKET)

    def record(self) -> dict[str, Any]:
        """What was asked for, what was not included, so that a run is compared whole."""
        names = inspect.getfullargspec(load).kwonlyargs
        return {"model": self.name, **{name: self.loading.get(name) or None for name in names}}

    @property
    def is_loaded(self) -> bool:
        return "loaded" in vars(self)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """(model, processor)"""
        return load(**self.loading)


def make_tasks(names: Sequence[str], **options: Any) -> list[Task]:
    """Tasks by name; a name or an option that there is not is an error that names those there are."""
    if not names:
        raise AdaptPruneError(
            f"Missing argument 'TASK': name one or several of {', '.join(TASKS.names())}; see adaptprune eval --help."
        )
    if len(set(names)) < len(names):
        raise AdaptPruneError("the same task is asked for twice: leave one out.")
    return [_make_task(name, options) for name in names]


def _make_task(name: str, options: dict[str, Any]) -> Task:
    kind = TASKS.get(name)
    makers = [base.__init__ for base in kind.__mro__ if "__init__" in vars(base)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    for option in options:
        if option not in known:
            raise AdaptPruneError(f"{name} has no option --{option.replace('_', '-').replace('kinds', 'kind')}.")
    made: Task = kind(**options)
    return made


def make_columns(methods: Sequence[str], keep_ratios: Sequence[float], task: Task | None = None) -> list[Column]:
    """The unpruned column and every method at every ratio; what is not asked for is as the task has it.

    A task that names no methods has all that are registered, and downsampling.
    """
    methods = list(methods) or list(task.methods if task else ()) or [*USUAL]
    return columns(methods, list(keep_ratios) or list((task or Task).keep_ratios))


@dataclass(frozen=True)
class Plan:
    """An evaluation that has been checked and can be carried out; see `prepare`.

    Attributes
    ----------
    count : int
        Questions.
    notes : list of str
        What the user should know first.
    """

    task: Task
    wanted: Sequence[Column]
    folder: Path
    model: Model
    record: dict[str, Any]
    named: dict[Column, Path]
    workers: int
    examples: int
    max_errors: float
    count: int
    notes: list[str]

    def run(
        self, total: Callable[[int], None] = lambda count: None, progress: Callable[[int], None] = lambda count: None
    ) -> Result:
        """Answer what is not answered yet, and write everything into the folder; see `evaluate`."""
        with Lock(self.folder / ".lock", repr(str(self.folder))):
            check_folder(self.folder, self.record)
            loaded, processor = self.model.loaded
            chosen = pick(self.record["protocol"], loaded.config)
            write_record(self.folder, self.record, loaded, chosen)
            total(self.count * len(self.wanted))
            with Asker(loaded, processor, chosen, self.record["batch_size"]) as asker:
                runner = Runner(
                    asker, self.folder, max_new_tokens=self.record["max_new_tokens"], workers=self.workers,
                    progress=progress,
                )  # fmt: skip
                files = runner.run(self.task, self.wanted, self.count)
                summary = self._report(files)
                shown = _for_page(self.wanted)
                if shown and self.examples and summary.questions:
                    write_page(asker.engine, self.task, shown, self.folder / "examples.html", self.examples)
        return Result(summary, self.folder)

    def _report(self, files: dict[str, Path]) -> Summary:
        summary = summarise(self.task, self.wanted, self.folder, files, self.model.name, self.max_errors)
        for column, path in self.named.items():
            write_whole(path, partial(shutil.copyfile, self.folder / "llava" / f"{column.file}.jsonl"))
        write_reports(summary, self.folder, f"{self.task.name}, {self.model.name}")
        return summary


def prepare(
    task: Task,
    wanted: Sequence[Column],
    folder: Path,
    *,
    model: Model | None = None,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    protocol: str = AUTO,
    workers: int = 4,
    examples: int = 20,
    max_errors: float = MAX_ERRORS,
    answers_file: str | None = None,
) -> Plan:
    """Check everything that can be checked before a model is loaded: options, packages, the folder, the questions."""
    model = model or Model()
    named = _answers_files(answers_file, wanted)
    longest = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    for option, value, most in (("batch_size", batch_size, 2**16), ("max_new_tokens", longest, 2**20)):
        whole(option, value, 1, most)
    whole("examples", examples, 0, 2**16)
    whole("workers", workers, 1, 256)
    if not 0 <= max_errors <= 1:
        raise AdaptPruneError(f"max_errors={max_errors} is not allowed: it is a share, from 0 to 1 (0.05 is 5 %).")
    task.check_extras()
    record = model.record() | {
        "task": task.name, "settings": task.settings(), "batch_size": batch_size, "max_new_tokens": longest,
        "protocol": protocol,
    }  # fmt: skip
    check_folder(folder, record)
    count = _count(task)
    notes = [*filter(None, [plot_problem()]), *task.notes()]
    return Plan(task, wanted, folder, model, record, named, workers, examples, max_errors, count, notes)


def _count(task: Task) -> int:
    """How many questions there are; an error if most of them cannot be used: then it is the file."""
    count = bad = 0
    first = ""
    for item in task.items():
        count += 1
        if item.problem:
            bad, first = bad + 1, first or item.problem
    if not count:
        raise AdaptPruneError(f"{task.name} has no questions here: check --limit, --chunk-idx and the question file.")
    if bad > count - bad:
        raise AdaptPruneError(f"{bad} of {count} questions of {task.name} cannot be used; the first: {first}.")
    return count


def evaluate(
    task: Task,
    wanted: Sequence[Column],
    folder: Path,
    *,
    total: Callable[[int], None] = lambda count: None,
    progress: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> Result:
    """Run (or continue) a task and write everything about it into a folder.

    run.json (what is needed to repeat it), answers/, speed/, llava/ (the answers in LLaVA's fields), submission/
    (where the benchmark takes files), summary.json, table.md, table.csv, curves.png, examples.html.

    Parameters
    ----------
    total, progress : callable
        Are told how many answers there will be, and how many were added.
    **options
        As for `prepare`. `max_errors` is the share of the questions that may fail: above it, or if none was answered,
        the result has no numbers and its summary's `failed` says why.

    Raises
    ------
    AdaptPruneError
        The folder holds a run of something else or is in use, the model cannot be loaded, most questions are bad.
    WriteError
        A file cannot be written. What was answered before is kept, and the same call goes on from there.
    """
    return prepare(task, wanted, folder, **options).run(total, progress)


def _answers_files(name: str | None, wanted: Sequence[Column]) -> dict[Column, Path]:
    """Where the user wants the answers: of every column, or of the one that is pruned."""
    if name is None:
        return {}
    if Path(name).is_dir():
        raise AdaptPruneError(f"{name!r} is a folder: name a file in it for --answers-file.")
    if "{column}" in name:
        return {column: Path(name.replace("{column}", column.file)) for column in wanted}
    pruned = [column for column in wanted if column.method != UNPRUNED] or list(wanted)
    if len(pruned) > 1:
        raise AdaptPruneError(
            f"the answers of {len(pruned)} columns do not fit one file {name!r}: put {{column}} into its name."
        )
    return {pruned[0]: Path(name)}


def _for_page(wanted: Sequence[Column]) -> list[Column]:
    """The first two methods that select tokens (not two variants of one), at the ratio closest to 10 %."""
    selecting = [column for column in wanted if column.pruner() is not None]
    if not selecting:
        return []
    ratio = min((column.keep_ratio for column in selecting), key=lambda r: abs(r - 0.1))
    first: dict[str, Column] = {}
    for column in selecting:
        if column.keep_ratio == ratio:
            first.setdefault(column.method.partition(":")[0], column)
    return list(first.values())[:2]


def check_folder(folder: Path, record: dict[str, Any]) -> None:
    """Refuse a folder in which something else was run."""
    if folder.exists() and not folder.is_dir():
        raise AdaptPruneError(f"{str(folder)!r} is a file: name a folder for --out.")
    path = folder / "run.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())["run"]
        changed = list(_changes(before, json.loads(json.dumps(record))))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AdaptPruneError(f"{str(path)!r} is damaged: use another --out folder.") from None
    if changed:
        parts = ", ".join(changed[:MOST_CHANGES])
        raise AdaptPruneError(f"{str(folder)!r} holds another run ({parts}): use another --out folder.")


def _changes(before: dict[str, Any], now: dict[str, Any], where: str = "") -> Iterator[str]:
    """What was otherwise, each with its name."""
    for key, value in now.items():
        was = before.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            yield from _changes(was, value, f"{where}{key}.")
        elif was != value:
            yield f"{where}{key} was {was!r}"


def write_record(folder: Path, record: dict[str, Any], model: Any, protocol: str) -> None:
    """What is needed to repeat the run; written once."""
    path = folder / "run.json"
    if path.exists():
        return
    about = {
        "run": record,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],  # not where it is installed
        "protocol": protocol,
        "model_revision": getattr(model.config, "_commit_hash", None),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "model_device": str(model.device),
        "decoding": "greedy",
        "seeds": {"bootstrap": 0},
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
    }
    write_text(path, json.dumps(about, indent=1) + "\n")


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, if it is one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
