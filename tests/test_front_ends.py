"""Every front end gives every family's answers as the library does: one picture, two and none, pruned or not."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from adaptprune.chat.session import Session, Settings
from adaptprune.engines.batch.ask import Question, ask_all
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.client import Client
from adaptprune.engines.local import LocalEngine
from adaptprune.engines.protocol import Answer, never, quiet
from adaptprune.engines.remote import RemoteEngine
from adaptprune.engines.sampling import Sampling
from adaptprune.eval.asker import Asker
from adaptprune.eval.columns import UNPRUNED, Column
from adaptprune.eval.task import Item
from adaptprune.hooks.seams import parts_of
from adaptprune.prompts import Turn
from tests.families import FAMILY
from tests.front_ends import (
    RATIO,
    STEPS,
    Case,
    Expected,
    ask_library,
    cases,
    conversations,
    expected,
    method,
    options,
    outspoken,
    pictures,
    pruner,
    pruning,
)
from tests.serving import data_url, live

GREEDY = Sampling(STEPS, temperature=0.0)


def engine_of(one: Any, **settings: Any) -> Engine:
    return Engine("tiny", one.model, one.processor, EngineLimits(max_batch=8), **settings)


@contextmanager
def started(engine: Engine) -> Iterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def same(answer: Answer, wanted: Expected, pruned: bool) -> None:
    """Text and counts; an unpruned answer may or may not count its visual tokens."""
    assert answer.text == wanted.text
    assert (answer.prompt_tokens, answer.new_tokens, answer.finish) == (wanted.prompt_tokens, STEPS, "length")
    if pruned:
        assert (answer.visual_tokens or 0, answer.visual_tokens_kept or 0) == (wanted.visual, wanted.kept)
    else:
        assert answer.visual_tokens == answer.visual_tokens_kept


@FAMILY
def test_the_answers_tell_prompts_apart(family):
    """What the others are compared with: pruned to the budget, and different from one prompt to another."""
    outspoken(family)
    found = expected(family)
    for (name, pruned), answer in found.items():
        assert len(answer.text.split()) == STEPS
        assert (0 < answer.kept <= RATIO * answer.visual) == (pruned and name != "text")
    assert len({answer.text for answer in found.values()}) >= 3


@FAMILY
def test_run_and_chat(family):
    """The engine of `run` and `chat`, with one cache kept over all conversations."""
    one, found = outspoken(family), expected(family)
    engine, seconds = LocalEngine(one.model, one.processor), []
    try:
        for case in cases(family):
            same(
                engine.ask(case.turns, GREEDY, pruning(family, case.pruned)), found[case.name, case.pruned], case.pruned
            )
        for pruned in (False, True):
            session = Session(engine, Settings(pruning(family, pruned), GREEDY), quiet)
            session._pending = [("first", pictures(family)[0])]
            first = session.enter("w3 w4 w5 w6", quiet, never)
            same(first, found["one", pruned], pruned)
            session._pending = [("second", pictures(family)[1])]
            seconds.append((session.enter("w20 w21", quiet, never), session.turns[:3], pruned))
    finally:
        engine.close()
    for answer, turns, pruned in seconds:
        same(answer, ask_library(family, turns, pruned), pruned)


@FAMILY
def test_the_batch_engine(family):
    """One at a time, then all of them in one batch, where each reads and writes among the others."""
    one, found = outspoken(family), expected(family)
    asked = cases(family)
    with started(engine_of(one)) as engine:
        for case in asked[1:3]:
            same(
                engine.ask(case.turns, GREEDY, pruning(family, case.pruned)), found[case.name, case.pruned], case.pruned
            )
        questions = [Question(case.turns, GREEDY, pruner(family) if case.pruned else None) for case in asked]
        together, _ = ask_all(engine, questions)
        for case, (answer, _) in zip(asked, together, strict=True):
            same(answer, found[case.name, case.pruned], case.pruned)


@FAMILY
def test_serve(family):
    """Over HTTP with the official client, and with ours, which `chat --server` and `web` use."""
    one, found = outspoken(family), expected(family)
    with live(engine_of(one)) as server:
        client, ours = server.client(), RemoteEngine(Client(server.url))
        for case in cases(family):
            wanted = found[case.name, case.pruned]
            reply = client.chat.completions.create(
                model="tiny", messages=sent(case), max_tokens=STEPS, temperature=0,
                extra_body={"pruning": options(family) if case.pruned else {"method": "none"}},
            )  # fmt: skip
            assert reply.choices[0].message.content.strip() == wanted.text
            assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (wanted.prompt_tokens, STEPS)
            told = reply.usage.pruning
            assert (told is None) == (not case.images)
            if told is not None:
                kept, everything = told["visual_tokens_kept"], told["visual_tokens"]
                assert (kept, everything) == (wanted.kept, wanted.visual) if case.pruned else kept == everything > 0
            if case.pruned or not case.images:
                same(ours.ask(case.turns, GREEDY, pruning(family, case.pruned)), wanted, case.pruned)


def sent(case: Case) -> list[dict[str, Any]]:
    """A conversation as the API has it, texts and pictures in their order."""

    def part(one: Any) -> dict[str, Any]:
        if isinstance(one, str):
            return {"type": "text", "text": one}
        return {"type": "image_url", "image_url": {"url": data_url(one)}}

    return [{"role": turn.role, "content": [part(one) for one in turn.parts]} for turn in case.turns]


@FAMILY
def test_eval(family):
    """Two columns over items about one picture, about two and about none; the tower reads each picture once."""
    one, found = outspoken(family), dict(expected(family))
    first, second, third = pictures(family)
    shown = {"a": [first], "b": [second, third], "": []}
    asked = [
        ("one", "a", "w3 w4 w5 w6"),
        ("both", "b", "w7 w8"),
        ("again", "a", "w9 w10 w11"),
        ("text", "", "w14 w15 w16"),
    ]
    asked = [ask for ask in asked if ask[0] in ("both", "again") or ask[0] in conversations(family)]
    tower = tower_of(family)
    calls = {name: tower_runs(family, shown[name], tower) for name in ("a", "b")}
    columns = {False: Column(UNPRUNED), True: Column(method(family), RATIO)}
    for name, picture, words in asked:
        for pruned in columns:
            if (name, pruned) not in found:
                found[name, pruned] = ask_library(family, [Turn("user", [*shown[picture], words])], pruned)
    items = [Item(name, picture, list, words, None, "") for name, picture, words in asked]
    with Asker(one.model, one.processor, "model", len(items)) as asker, counting(one.model) as runs:
        for pruned, column in columns.items():
            answers, times = asker.ask(items, shown, column, STEPS)
            assert times is not None
            assert times.rows == len(items)
            for item, answer in zip(items, answers, strict=True):
                same(answer, found[item.id, pruned], pruned)
    assert runs[tower] == sum(calls.values())


@contextmanager
def counting(model: Any) -> Iterator[Counter[str]]:
    """How often each of the model's modules ran."""
    names, found = {module: name for name, module in model.named_modules()}, Counter()

    def note(module: Any, inputs: Any) -> None:
        if module in names:
            found[names[module]] += 1

    hook = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def tower_of(family: str) -> str:
    """The first module that runs when the model encodes a picture."""
    one = outspoken(family)
    base = parts_of(one.model).base
    encode, inside = base.get_image_features, []

    @functools.wraps(encode)  # generate() picks the arguments by the signature
    def noting(*args: Any, **kwargs: Any) -> Any:
        with counting(one.model) as runs:
            made = encode(*args, **kwargs)
        inside.extend(runs)
        return made

    base.get_image_features = noting
    try:
        ask_library(family, conversations(family)["one"], False)
    finally:
        del base.get_image_features
    return inside[0]


def tower_runs(family: str, images: Any, tower: str) -> int:
    """How often it runs for these pictures in stock transformers."""
    with counting(outspoken(family).model) as runs:
        ask_library(family, [Turn("user", [*images, "w1"])], False)
    assert runs[tower] > 0
    return runs[tower]


@FAMILY
def test_lmms_eval(family, monkeypatch):
    """lmms-eval writes pictures into the question by a word of its own, or hands them beside it."""
    one, found = outspoken(family), expected(family)
    model_class = bridge(monkeypatch)
    contexts = {
        "one": ("w3 w4 w5 w6", "<image> w3 w4 w5 w6"),
        "two": ("w7 w8 <image> w9 w10 <image> w11 w12 w13",),
        "text": ("w14 w15 w16",),
    }
    said = conversations(family)
    docs = [Case(name, turns).images for name, turns in said.items() for _ in contexts[name]]
    names = [name for name in said for _ in contexts[name]]
    texts = [context for name in said for context in contexts[name]]
    for pruned in (False, True):
        column = Column(method(family), RATIO) if pruned else Column(UNPRUNED)
        model = model_class(
            model=SimpleNamespace(loaded=(one.model, one.processor)), column=column, protocol="model", batch_size=4
        )
        model.task_dict = {"toy": {"test": docs}}
        asked = [
            SimpleNamespace(args=(text, {"max_new_tokens": STEPS}, lambda doc: doc, number, "toy", "test"))
            for number, text in enumerate(texts)
        ]
        assert model.generate_until(asked) == [found[name, pruned].text for name in names]


def bridge(monkeypatch: Any) -> Any:
    """The bridge's model class, on the bare interface if lmms-eval is not installed."""
    try:
        import lmms_eval  # noqa: F401
    except ImportError:
        base = type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})
        parts = {
            "lmms_eval": {},
            "lmms_eval.api": {},
            "lmms_eval.api.instance": {"Instance": SimpleNamespace},
            "lmms_eval.api.model": {"lmms": base},
        }
        for name, found in parts.items():
            module = ModuleType(name)
            vars(module).update(found)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, "adaptprune.eval.lmms_model", raising=False)
    from adaptprune.eval.lmms_model import AdaptPruned

    return AdaptPruned
