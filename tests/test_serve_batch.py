"""The engine's batches: whatever runs next to it, a request gets the answer that it gets alone."""

from __future__ import annotations

import random
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from transformers import DynamicCache

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Delta, Done, Failed, Row
from adaptprune.engines.batch.limits import EngineLimits
from adaptprune.engines.batch.slots import Slots
from adaptprune.engines.errors import EngineError
from adaptprune.engines.protocol import Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from adaptprune.serve.errors import status_of
from tests.serving import picture
from tests.tiny import LAYERS, llava

METHODS = [
    None,
    "adaptprune:keep_ratio=0.1",
    "adaptprune:keep_ratio=0.3,layer=1",
    "fastv:keep_ratio=0.5,layer=3",
    "random:keep_ratio=0.2,layer=0",
    "pool:keep_ratio=0.25,layer=0",
    "grid:keep_ratio=0.4,layer=2",
]


@pytest.fixture(scope="module")
def parts(checkpoint):
    """A model and its processor; answers run to their full length."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    return model, processor


@pytest.fixture
def engine(parts):
    engine = Engine("tiny", *parts)
    engine.start()
    yield engine
    engine.stop()
    assert not engine.alive


def request(seed: int) -> tuple[list[Turn], str | None, int]:
    """A conversation, a method and a length."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(f"w{rng.randrange(50)}" for _ in range(rng.randrange(1, most)))

    images = [picture(rng.randrange(10**6)) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    turns = [Turn("user", [*images, words(15)])]
    if rng.random() < 0.3:
        turns += [
            Turn("assistant", [words(5)]),
            Turn("user", [*([picture(seed)] if rng.random() < 0.5 else []), words(5)]),
        ]
    return turns, rng.choice(METHODS), rng.randrange(1, 25)


def alone(parts, engine: Engine, turns: list[Turn], method: str | None, length: int) -> str:
    """The answer of `generate` under `prune`."""
    model, processor = parts
    inputs = engine.prompter.inputs(turns)
    with torch.inference_mode(), adaptprune.prune(model, method) if method else nullcontext():
        output = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(engine: Engine, turns, sampling: Sampling, **options) -> tuple[str, Done | Failed]:
    text = ""
    for event in engine.stream(turns, sampling, **options):
        if isinstance(event, Delta):
            text += event.text
        else:
            return text, event
    raise AssertionError("no last event")


def empty(engine: Engine) -> None:
    """Rows leave just after their last event; then an idle engine holds no cache."""
    until = time.monotonic() + 5
    while engine.running or engine.pending or engine.cache_bytes:
        assert time.monotonic() < until, (engine.running, engine.pending, engine.cache_bytes)
        time.sleep(0.001)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_answer_of_a_mixed_batch_is_the_answer_alone(checkpoint, attention):
    model, processor = parts = adaptprune.load(checkpoint, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    engine = Engine("tiny", model, processor, EngineLimits(max_batch=12))
    requests = [request(seed) for seed in range(40)]
    expected = [alone(parts, engine, *one) for one in requests]
    assert len(set(expected)) > 35  # the answers tell requests apart
    engine.start()
    found: list = [None] * len(requests)

    def work(index: int) -> None:
        turns, method, length = requests[index]
        time.sleep(random.Random(index).random() / 10)
        found[index] = ask(engine, turns, Sampling(length), pruner=make_pruner(method) if method else None)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = engine.counters
    empty(engine)
    engine.stop()
    assert [text for text, _ in found] == expected
    for (turns, method, length), (_, event) in zip(requests, found, strict=True):
        assert isinstance(event, Done)
        count = 36 * sum(len(turn.images) for turn in turns)
        assert event.usage.visual_tokens == count
        assert event.usage.completion_tokens == length
        ratio = 1 if method is None else make_pruner(method).keep_ratio
        assert event.usage.visual_tokens_kept <= count * ratio + 1e-9
        assert (event.usage.kv_bytes < event.usage.kv_bytes_unpruned) == (method is not None and count > 0)
    assert counters.step_rows > 2 * counters.steps, "the requests did not run together"


def test_cancelled_and_late_requests_leave_the_others_as_they_were(parts, engine):
    requests = [request(seed) for seed in range(100, 112)]
    expected = [alone(parts, engine, *one) for one in requests]
    found: list = [None] * len(requests)

    def work(index: int) -> None:
        turns, method, length = requests[index]
        found[index] = ask(engine, turns, Sampling(length), pruner=make_pruner(method) if method else None)

    def leave(index: int) -> None:
        stream = engine.stream(requests[index][0], Sampling(400))
        for count, _ in enumerate(stream):
            if count == index:
                stream.close()
                return

    late: list = []

    def overdue() -> None:
        late.append(ask(engine, requests[0][0], Sampling(400), timeout=0.15)[1])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    threads += [threading.Thread(target=leave, args=(index,)) for index in range(6)]
    threads += [threading.Thread(target=overdue) for _ in range(3)]
    random.Random(0).shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text for text, _ in found] == expected
    assert [event.error.code for event in late] == ["deadline_exceeded"] * 3
    empty(engine)


def test_choices_share_one_reading_and_sampling_is_seeded(parts, engine):
    turns = request(1)[0]

    def choices(seed: int, n: int) -> list[str]:
        texts = [""] * n
        for event in engine.stream(turns, Sampling(12, temperature=1.5, seed=seed, n=n)):
            if isinstance(event, Delta):
                texts[event.index] += event.text
        return texts

    before = engine.counters.prefills
    three = choices(7, 3)
    assert engine.counters.prefills == before + 1
    assert len(set(three)) == 3
    assert choices(7, 3) == three
    assert choices(8, 1) == [three[1]]  # choice i is drawn with seed + i
    greedy = {ask(engine, turns, Sampling(12, temperature=0, n=1))[0] for _ in range(2)}
    assert len(greedy) == 1
    assert ask(engine, turns, Sampling(12, temperature=1.0, top_p=1e-6))[0] in greedy


def test_a_new_request_does_not_wait_for_the_longest_one(engine):
    order = []

    def work(name: str, length: int) -> None:
        ask(engine, request(3)[0], Sampling(length))
        order.append(name)

    long = threading.Thread(target=work, args=("long", 400))
    long.start()
    while not engine.running:
        time.sleep(0.001)
    short = threading.Thread(target=work, args=("short", 3))
    short.start()
    short.join()
    long.join()
    assert order == ["short", "long"]


def test_stop_strings_and_lengths(parts, engine):
    turns, _, _ = request(5)
    whole = alone(parts, engine, turns, None, 20)
    words = whole.split()
    stop = " ".join(words[6:8])
    deltas = list(engine.stream(turns, Sampling(20, stop=("zzz", stop)), pruner=None))
    text = "".join(event.text for event in deltas if isinstance(event, Delta))
    assert text == whole[: whole.index(stop)]
    assert [event.finish for event in deltas if isinstance(event, Delta) and event.finish] == ["stop"]
    last = list(engine.stream(turns, Sampling(4), pruner=None))[-2]
    assert last.finish == "length"


def test_the_queue_is_bounded(parts):
    engine = Engine("tiny", *parts, EngineLimits(max_batch=2, max_queue=3))
    jobs = [engine.open(Sampling(), None, lambda event: None) for _ in range(5)]
    with pytest.raises(EngineError) as full:
        engine.open(Sampling(), None, lambda event: None)
    assert (status_of(full.value), full.value.code) == (429, "queue_full")
    assert full.value.retry_after >= 1
    engine.cancel(jobs[0])
    engine.cancel(jobs[0])
    engine.open(Sampling(), None, lambda event: None)
    engine.start()
    engine.stop()


def test_stopping_fails_what_is_left(parts):
    engine = Engine("tiny", *parts)
    engine.start()
    stream = engine.stream(request(2)[0], Sampling(400))
    assert isinstance(next(stream), Delta)
    engine.drain()
    (refused,) = engine.stream(request(2)[0])
    assert refused.error.code == "shutting_down"
    engine.stop()
    assert list(stream)[-1].error.code == "shutting_down"


@pytest.mark.parametrize("where", ["prefill", "step"])
def test_running_out_of_memory_costs_one_request_only(parts, engine, monkeypatch, where):
    """The failing forward has already written to some layers; the others must not notice."""
    turns, _, _ = request(5)
    expected = alone(parts, engine, turns, None, 30)
    layer = parts[0].model.language_model.layers[LAYERS - 2]
    original, calls = layer.forward, []

    def fails(states, *args, **kwargs):
        rows, tokens = states.shape[:2]
        if not calls and (tokens > 1 and engine.running == 1 if where == "prefill" else rows == 2):
            calls.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(states, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", fails)
    first: list = []
    thread = threading.Thread(target=lambda: first.append(ask(engine, turns, Sampling(30), pruner=None)))
    thread.start()
    while not engine.running:
        time.sleep(0.0005)
    _, event = ask(engine, turns, Sampling(30), pruner=None)
    thread.join()
    assert calls
    assert event.error.code == "out_of_memory"
    assert "keep_ratio" in event.error.message
    assert first[0][0] == expected
    assert ask(engine, turns, Sampling(30), pruner=None)[0] == expected


def test_a_row_whose_token_cannot_be_chosen_costs_one_request_only(parts, engine, monkeypatch):
    turns, _, _ = request(5)
    expected = alone(parts, engine, turns, None, 30)
    original = Row.choose

    def fails(row, scores):
        if len(row.tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(row, scores)

    monkeypatch.setattr(Row, "choose", fails)  # greedy rows do not come here
    found: list = []
    threads = [
        threading.Thread(target=lambda: found.append(ask(engine, turns, Sampling(30), pruner=None))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    _, event = ask(engine, turns, Sampling(30, temperature=1.0), pruner=None)
    for thread in threads:
        thread.join()
    assert event.error.code == "out_of_memory"
    assert [text for text, _ in found] == [expected] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(parts, engine, monkeypatch, value):
    head = parts[0].lm_head
    monkeypatch.setattr(head, "forward", lambda states: torch.full((*states.shape[:2], 100), value))
    _, event = ask(engine, request(5)[0], Sampling(5))
    assert event.error.code == "not_a_number"


def test_what_the_engine_refuses(parts, engine):
    picture_turn = [Turn("user", [picture(0), "a"])]
    cases = {
        "more than the model's context of 512": (picture_turn, Sampling(500), None),
        "the image placeholder": ([Turn("user", ["a <image> b"])], Sampling(), None),
    }
    with pytest.raises(AdaptPruneError, match="outside the model, which has 5"):
        engine.check(Pruning("fastv:layer=5"))
    for message, (turns, sampling, pruner) in cases.items():
        _, event = ask(engine, turns, sampling, pruner=pruner)
        assert status_of(event.error) == 400
        assert message in event.error.message


def test_rows_of_slots_keep_their_keys_when_others_join_and_leave():
    """Against plain lists, over many random joins, leaves and steps."""
    config = llava().config
    slots, mirror, rng = Slots(config, {}), [], random.Random(0)
    for round_ in range(120):
        action = rng.random()
        if action < 0.3 or not mirror:
            cache = DynamicCache()
            for layer in range(LAYERS):
                length = rng.randrange(1, 90)
                cache.update(torch.randn(1, 2, length, 16), torch.randn(1, 2, length, 16), layer)
            slots.join(cache, lambda index, held=cache: torch.arange(held.layers[index].keys.shape[2]))
            mirror.append([layer.keys[0].clone() for layer in cache.layers])
        elif action < 0.45:
            place = rng.randrange(len(mirror))
            slots.leave(place)
            mirror[place] = mirror[-1]
            mirror.pop()
        else:
            new = torch.randn(len(mirror), 2, 1, 16)
            slots.begin_step()
            for index in range(LAYERS):
                mask = slots.mask(index, "sdpa", torch.float32, torch.device("cpu"))
                keys, _ = slots.update(new, new, index)
                for row, expected in enumerate(mirror):
                    expected[index] = torch.cat([expected[index], new[row]], dim=1)
                    held = mask[row, 0, 0] if mask is not None else torch.ones(keys.shape[2], dtype=torch.bool)
                    assert torch.equal(keys[row][:, held], expected[index])
            slots.end_step()
        assert len(slots) == len(mirror), round_


def test_leaving_while_the_prompt_is_read_takes_nothing_with_it(parts, engine, monkeypatch):
    """Whoever leaves between the reading of its prompt and its first token has none to go on from."""
    turns = request(5)[0]
    expected = alone(parts, engine, turns, None, 200)
    read = engine._batch.read

    def read_and_leave(job):
        written = read(job)
        job.cancelled = job.sampling.max_tokens == 299  # as a client that hangs up at this moment
        return written

    monkeypatch.setattr(engine._batch, "read", read_and_leave)
    # nobody tells a client that has left, so this thread hears no more
    gone = threading.Thread(target=lambda: list(engine.stream(request(6)[0], Sampling(299))), daemon=True)
    text, last = "", None
    for number, event in enumerate(engine.stream(turns, Sampling(200))):
        if number == 0:
            gone.start()
        text, last = (text + event.text, last) if isinstance(event, Delta) else (text, event)
    assert isinstance(last, Done)
    assert text == expected
    empty(engine)
