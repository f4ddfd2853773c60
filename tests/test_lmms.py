"""The bridge to lmms-eval: against the real one where it is installed (an optional extra), else its bare interface."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from adaptprune import AdaptPruneError
from adaptprune.disk import Lock
from adaptprune.eval import api, lmms
from adaptprune.eval.columns import Column
from tests.benchmarks import cell, parquet, put
from tests.test_eval import Toy

REAL = importlib.util.find_spec("lmms_eval") is not None


@pytest.fixture
def interface(monkeypatch):
    """The parts of lmms-eval that the model class stands on: a base class without behaviour, and a manifest."""
    if REAL:
        return
    parts = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {},
        "lmms_eval.api.instance": {"Instance": SimpleNamespace},
        "lmms_eval.api.model": {"lmms": type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})},
        "lmms_eval.models.registry_v2": {
            "ModelManifest": lambda model_id, simple_class_path: SimpleNamespace(
                model_id=model_id, simple_class_path=simple_class_path
            )
        },
    }  # fmt: skip
    for name, found in parts.items():
        module = ModuleType(name)
        vars(module).update(found)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "adaptprune.eval.lmms_model", raising=False)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    model = api.Model({"name_or_path": str(checkpoint)})
    model.loaded[1].chat_template = None
    return model


def requests(items, options):
    return [
        SimpleNamespace(args=(item.prompt, options, lambda doc: doc, number, "toy", "test"))
        for number, item in enumerate(items)
    ]


def test_answers_are_those_of_a_run(interface, tiny, tmp_path):
    from adaptprune.eval.lmms_model import AdaptPruned

    task, column = Toy(), Column("fastv", 0.25)
    items = task.items()
    api.evaluate(task, [Column("unpruned"), column], tmp_path, model=tiny, batch_size=4, max_new_tokens=3, examples=0)
    wanted = [json.loads(line)["answer"] for line in (tmp_path / "answers/fastv@0.25.jsonl").open()]
    model = AdaptPruned(model=tiny, column=column, batch_size=4)
    model.task_dict = {"toy": {"test": [item.images() for item in items]}}
    assert model.generate_until(requests(items, {"max_new_tokens": 3, "until": ["\n\n"]})) == wanted
    first = wanted[0].split()[0]
    assert model.generate_until(requests(items[:1], {"max_new_tokens": 3, "until": " " + wanted[0].split()[1]})) == [
        first
    ]


def test_what_does_not_work_is_refused(interface, tiny):
    from adaptprune.eval.lmms_model import AdaptPruned

    model = AdaptPruned(model=tiny, column=Column("fastv", 0.25))
    model.task_dict = {"toy": {"test": [["video.mp4"]]}}
    with pytest.raises(AdaptPruneError, match="the task 'toy' has videos or sound"):
        model.generate_until(requests(Toy().items()[:1], {}))
    with pytest.raises(AdaptPruneError, match="likelihoods do not work with pruning"):
        model.loglikelihood([])
    with pytest.raises(AdaptPruneError, match="several rounds"):
        model.generate_until_multi_round([])


def test_lmms_eval_is_told_of_our_model(interface):
    from importlib.metadata import entry_points

    manifest = lmms.manifest()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert (manifest.model_id, module, name) == ("adaptprune", "adaptprune.eval.lmms_model", "AdaptPruned")
    assert hasattr(importlib.import_module(module), name)
    for point in entry_points(group="lmms_eval.models", name="adaptprune"):
        assert point.value == "adaptprune.eval.lmms:manifest"


@pytest.mark.skipif(REAL, reason="lmms-eval is installed")
def test_without_lmms_eval_the_error_says_what_to_install(tiny, tmp_path):
    with pytest.raises(AdaptPruneError, match="pip install 'adaptprune\\[lmms\\]'"):
        lmms.evaluate(["pope"], [Column("unpruned")], tiny, tmp_path)


def test_two_runs_do_not_share_a_folder(interface, tiny, tmp_path, monkeypatch):
    manager = SimpleNamespace(all_tasks=["pope"])
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", SimpleNamespace(TaskManager=lambda *_, **__: manager))
    with (
        Lock(tmp_path / ".lock", "x"),
        pytest.raises(AdaptPruneError, match=f"'{tmp_path}' is in use by process {os.getpid()} on "),
    ):
        lmms.evaluate(["pope"], [Column("unpruned")], tiny, tmp_path)


TASK = """
task: tiny_yes
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_yes_utils.visual
doc_to_text: "what is this ?"
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 3
process_results: !function tiny_yes_utils.results
metric_list:
  - metric: length
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """
import io
from PIL import Image
def visual(doc):
    found = doc["image"]
    return [found if isinstance(found, Image.Image) else Image.open(io.BytesIO(found["bytes"]))]
def results(doc, results):
    return {"length": float(len(results[0].split()))}
"""


@pytest.mark.skipif(not REAL, reason="needs the optional extra lmms-eval")
def test_a_task_of_lmms_eval_runs_under_every_column(tiny, tmp_path):
    file = parquet(tmp_path / "test.parquet", [{"answer": "a", "image": cell(n)} for n in range(3)])
    put(tmp_path / "tasks/tiny_yes.yaml", TASK.replace("{file}", str(file)))
    put(tmp_path / "tasks/tiny_yes_utils.py", FUNCTIONS)
    columns = api.make_columns(["fastv"], [0.25])
    rows = lmms.evaluate(["tiny_yes"], columns, tiny, tmp_path / "run", batch_size=2, include=tmp_path / "tasks")
    assert [(row["method"], row["metric"]) for row in rows] == [("unpruned", "length"), ("fastv", "length")]
    assert all(1 <= row["value"] <= 3 for row in rows)
    assert (
        lmms.evaluate(["tiny_yes"], columns, tiny, tmp_path / "run", batch_size=2, include=tmp_path / "tasks") == rows
    )
    with pytest.raises(AdaptPruneError, match="lmms-eval has no task 'tiny_no'"):
        lmms.evaluate(["tiny_no"], columns, tiny, tmp_path / "x")
