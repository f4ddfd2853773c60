"""Readers of question files under arbitrary values and bytes: items, or an error of ours."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptprune import AdaptPruneError
from adaptprune.eval import api
from adaptprune.eval.ahead import ahead
from adaptprune.eval.task import TASKS
from adaptprune.eval.tasks.custom import Custom
from tests.benchmarks import MAKERS, put
from tests.evaluating import LIST, PLAIN, ROWS

WHATEVER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def replaced(value, path, other):
    """The same JSON with something else at a place; `path` picks a member at each depth, until it is used up."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return other
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[path[0] % len(keys)]
    made = dict(value) if isinstance(value, dict) else list(value)
    made[key] = replaced(value[key], path[1:], other)
    return made


def gone_through(make):
    """Open all questions of a task; the only error there may be is one of ours."""
    with suppress(AdaptPruneError):
        task = make()
        items = list(task.items())
        assert len({item.id for item in items}) == len(items)
        for item in items:
            made = ahead([[item]], lambda one: one.picture, lambda one: one.images(), lambda group: True, 1)
            assert len(list(made)) == 1
        task.settings()


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    for make in MAKERS.values():
        make(root)
    return root


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"mmbench", "mmbench_cn"}))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_anywhere_in_a_benchmarks_files_is_a_traceback(benchmarks, name, data):
    kind = TASKS.get(name)
    files = [benchmarks / kind.folders[0] / file for file in next(iter(kind.splits.values())).files]
    path = data.draw(st.sampled_from([file for file in files if file.suffix in (".json", ".jsonl")]))
    before = path.read_text()
    place = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    other = data.draw(WHATEVER)
    try:
        records = json.loads(before)
        changed = json.dumps(replaced(records, place, other))
    except ValueError:
        records = [json.loads(line) for line in before.splitlines()]
        changed = "".join(json.dumps(row) + "\n" for row in replaced(records, place, other))
    try:
        path.write_text(changed)
        gone_through(lambda: api.make_tasks([name], data=benchmarks)[0])
    finally:
        path.write_text(before)


STARTS = [b"", PLAIN.encode(), LIST.encode(), PLAIN.encode("utf-16"), b"\xff\xfe", gzip.compress(PLAIN.encode()),
          json.dumps({"data": ROWS}).encode()]  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_are_a_traceback(tmp_path, benchmarks, data):
    start = data.draw(st.sampled_from(STARTS))
    raw = bytearray(start)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(raw)))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    path = put(tmp_path / "q.jsonl", bytes(raw))
    gone_through(lambda: Custom(path, tmp_path))
    table = tmp_path / "mmbench/mmbench_dev_20230712.tsv"
    rows = bytearray((benchmarks / "mmbench/mmbench_dev_20230712.tsv").read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(rows)))
        rows[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    put(table, bytes(rows))
    gone_through(lambda: api.make_tasks(["mmbench"], data=tmp_path)[0])
