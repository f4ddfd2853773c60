"""One evaluation from start to end: load, run or continue, summarise, write every report."""

from __future__ import annotations

import inspect
import itertools
import json
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from adaptprune.checks import whole
from adaptprune.doctor import versions
from adaptprune.errors import AdaptPruneError
from adaptprune.eval import answers, speed
from adaptprune.eval.columns import DOWNSAMPLE, UNPRUNED, Column, columns
from adaptprune.eval.page import AsEvaluated, write_page
from adaptprune.eval.protocol import AUTO, pick
from adaptprune.eval.report import markdown, plot, table_csv
from adaptprune.eval.runner import Runner
from adaptprune.eval.submission import JsonLines
from adaptprune.eval.summary import Summary
from adaptprune.eval.task import TASKS, Item, Submission, Task
from adaptprune.methods import list_methods
from adaptprune.models import POCKET, load

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
    methods = list(methods) or list(task.methods if task else ()) or [*list_methods(), DOWNSAMPLE]
    return columns(methods, list(keep_ratios) or list((task or Task).keep_ratios))


def evaluate(
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
    answers_file: str | None = None,
    total: Callable[[int], None] = lambda count: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Result:
    """Run (or continue) a task and write everything about it into a folder.

    run.json (what is needed to repeat it), answers/, speed/, llava/ (the answers in LLaVA's fields), submission/
    (where the benchmark takes files), summary.json, table.md, table.csv, curves.png, examples.html.

    Raises
    ------
    AdaptPruneError
        The folder holds a run of something else, or the model cannot be loaded.
    """
    model = model or Model()
    named = _answers_files(answers_file, wanted)
    name, longest = model.name, task.max_new_tokens if max_new_tokens is None else max_new_tokens
    for option, value, most in (("batch_size", batch_size, 2**16), ("max_new_tokens", longest, 2**20)):
        whole(option, value, 1, most)
    whole("examples", examples, 0, 2**16)
    record = model.record() | {
        "task": task.name, "settings": task.settings(), "batch_size": batch_size, "max_new_tokens": longest,
        "protocol": protocol,
    }  # fmt: skip
    check_folder(folder, record)
    count = sum(1 for _ in task.items())
    if not count:
        raise AdaptPruneError(f"{task.name} has no questions here: check --limit, --chunk-idx and the question file.")
    loaded, processor = model.loaded
    chosen = pick(protocol, loaded.config)
    write_record(folder, record, loaded, chosen)
    total(count * len(wanted))
    runner = Runner(
        loaded, processor, folder, batch_size=batch_size, max_new_tokens=longest,
        protocol=chosen, workers=workers, progress=progress,
    )  # fmt: skip
    files = runner.run(task, wanted, count)
    summary = _summarise(task, wanted, folder, files, name)
    for column, path in named.items():
        _copy(folder / "llava" / f"{column.file}.jsonl", path)
    _reports(summary, folder, f"{task.name}, {name}")
    shown = _for_page(wanted)
    if shown and examples:
        write_page(AsEvaluated(loaded, processor, chosen), task, shown, folder / "examples.html", examples)
    return Result(summary, folder)


def _reports(summary: Summary, folder: Path, title: str) -> None:
    (folder / "summary.json").write_text(json.dumps(summary.to_dict(), indent=1) + "\n")
    (folder / "table.md").write_text(markdown(summary))
    (folder / "table.csv").write_text(table_csv(summary))
    plot(summary, folder / "curves.png", f"{title}: {summary.questions} questions, 95 % intervals")


def _summarise(task: Task, wanted: Sequence[Column], folder: Path, files: dict[str, Path], model: str) -> Summary:
    """Read all answers once: the numbers, the official metrics, the answers as LLaVA writes them, files for servers."""
    tallies = {column.name: task.tally() for column in wanted}
    writers: dict[str, list[Submission]] = {column.name: [] for column in wanted}
    for column in wanted:
        file = folder / "llava" / f"{column.file}.jsonl"
        writers[column.name].append(JsonLines(file, partial(llava_line, model, column)))
        submission = task.submission(folder / "submission", column.file)
        if submission is not None:
            writers[column.name].append(submission)

    def watch(column: Column, item: Item, line: dict[str, Any]) -> None:
        tally = tallies[column.name]
        if tally is not None and "error" not in line:
            tally.add(item, line["answer"])
        for writer in writers[column.name]:
            writer.add(item, line["answer"])

    summary = Summary(task.items(), {name: answers.read(path) for name, path in files.items()}, wanted, watch)
    for writer in itertools.chain.from_iterable(writers.values()):
        writer.close()
    metrics = {name: tally.result() for name, tally in tallies.items() if tally is not None}
    speeds = {column.name: speed.read(folder / "speed" / f"{column.file}.jsonl") for column in wanted}
    summary.complete(metrics, speeds, task.headline if metrics and not task.scored_by else "", task.scored_by)
    return summary


def llava_line(model: str, column: Column, item: Item, answer: str) -> dict[str, Any]:
    """An answer in the fields of LLaVA's evaluation scripts; the same answer has the same id in every run."""
    name = Path(model).name
    question_id = item.id if item.question_id is None else item.question_id
    extra = {key: value for key, value in item.extra.items() if key != "cells"}
    return {
        "question_id": question_id,
        "prompt": item.prompt,
        "text": answer,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {column.name} {item.id}").hex,
        "model_id": name if column.method == UNPRUNED else f"{name} {column.name}",
        "metadata": {"problem": item.problem} if item.problem else {},
        **extra,
    }


def _answers_files(name: str | None, wanted: Sequence[Column]) -> dict[Column, Path]:
    """Where the user wants the answers: of every column, or of the one that is pruned."""
    if name is None:
        return {}
    if "{column}" in name:
        return {column: Path(name.replace("{column}", column.file)) for column in wanted}
    pruned = [column for column in wanted if column.method != UNPRUNED] or list(wanted)
    if len(pruned) > 1:
        raise AdaptPruneError(
            f"the answers of {len(pruned)} columns do not fit one file {name!r}: put {{column}} into its name."
        )
    return {pruned[0]: Path(name)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


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
    folder.mkdir(parents=True, exist_ok=True)
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
    path.write_text(json.dumps(about, indent=1) + "\n")


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
