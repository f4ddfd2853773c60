"""Every image-text-to-text type of the installed transformers, tried on a tiny model, and compared with expectations.

    python -m tools.sweep [TYPES] [--write]

Of each type that is not refused by name a tiny model with random weights is pruned (`random`, 25 %, before layer K): it
has to equal the oracle at the prompt and three words after it, with sdpa and eager attention; to be bit-identical with
keep_ratio=1; and to pass the self-check that `prune` makes. What is expected lies in
`adaptprune/families/outcomes.json`, which `adaptprune families` shows. A rename or a new type in a release shows as a
difference; `--write` accepts it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adaptprune
from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.families import TYPES, family_of, why_refused
from adaptprune.families.outcomes import FILE, read
from adaptprune.hooks import selfcheck
from adaptprune.hooks.seams import Parts, parts, parts_of
from adaptprune.hooks.seams.catalogue import image_text_types
from adaptprune.hooks.seams.versions import installed
from adaptprune.testing.oracle import hiding
from adaptprune.testing.shapes import NotBuilt, Shape, of_zoo, shape, specimens_of

ATTENTION = ("sdpa", "eager")
KEEP_RATIO, STEPS = 0.25, 4
#: How far float32 logits may be from the oracle's, and by how much the oracle has to differ from the unpruned model.
TOLERANCE, MOVED = 1e-4, 1e-3


class Wrong(Exception):
    """A type does not do what pruning promises."""


def outcome(model_type: str) -> dict[str, Any]:
    """What is found of a type: its tier, and what `adaptprune families` says of it."""
    reason = why_refused(model_type)
    if reason is not None:
        return {"tier": "refused", "detail": reason}
    try:
        facts = [_tried(one) for attention in ATTENTION for one in _all_of(model_type, attention)]
    except NotBuilt as error:
        return {"tier": "unknown", "detail": str(error)}
    except (AdaptPruneError, Wrong) as error:
        return {"tier": "fails", "detail": first_line(error)}
    except Exception as error:  # of stock transformers, or ours: whatever it is, a person has to look
        return {"tier": "fails", "detail": f"{type(error).__name__}: {first_line(error)}"}
    decoders = sorted({fact.pop("decoder") for fact in facts})
    if any(fact != facts[0] for fact in facts):
        return {"tier": "fails", "detail": f"models of one type differ, or sdpa and eager: {facts}"}
    tier = "tested" if model_type in TYPES else "checked"
    return {"tier": tier, "decoders": decoders, **facts[0], **_bounded(model_type)}


def _all_of(model_type: str, attention: str) -> list[Shape]:
    """The specimens of a type, or its tiny model with inputs made by hand."""
    names = specimens_of(model_type)
    return [of_zoo(name, attention) for name in names] or [shape(model_type, attention, binds=False)]


def _tried(one: Shape) -> dict[str, Any]:
    found = parts_of(one.model)
    layer = _layer(one, found)
    plain = _generated(one)
    with adaptprune.prune(one.model, "random", keep_ratio=1, layer=layer, check=False) as whole:
        if not torch.equal(_generated(one), plain):
            raise Wrong("keep_ratio=1 changes the answer")
    if len(whole.samples[0].images) != one.pictures:
        raise Wrong(f"{len(whole.samples[0].images)} pictures were told apart in place of {one.pictures}")
    with adaptprune.prune(one.model, "random", keep_ratio=KEEP_RATIO, layer=layer, check=False) as report:
        pruned = _generated(one)
    gone = [sorted(set(whole.samples[0].kept) - set(report.samples[0].kept))]
    with hiding(one.model, layer, gone, padding=one.inputs["attention_mask"]):
        expected = _generated(one)
    if not float((expected - plain).abs().max()) > MOVED:
        raise Wrong("the oracle hid nothing")
    apart = float((pruned - expected).abs().max())
    if not apart <= TOLERANCE:
        raise Wrong(f"logits differ from the oracle's by {apart:.1e}")
    try:
        selfcheck.run(selfcheck.Trial(found, (layer,)))
    except selfcheck.Failed as failure:
        raise Wrong(f"self-check: {failure}") from None
    return _facts(one, found, whole.notes)


def _layer(one: Shape, found: Parts) -> int:
    """The first layer from 2 on before which tokens can leave, or the first at all."""
    smallest = family_of(one.model.config).smallest_layer(one.model.config)
    for layer in (*range(max(2, smallest), len(found.layers)), *range(smallest)):
        try:
            adaptprune.prune(one.model, "random", keep_ratio=KEEP_RATIO, layer=layer, check=False).remove()
        except AdaptPruneError:
            continue
        return layer
    adaptprune.prune(one.model, "random", keep_ratio=KEEP_RATIO, layer=max(1, smallest), check=False).remove()
    return max(1, smallest)


def _facts(one: Shape, found: Parts, notes: list[str]) -> dict[str, Any]:
    """What does not depend on sizes: for a table that people read."""
    decoder = getattr(parts.text_config(one.model.config), "model_type", "")
    facts: dict[str, Any] = {
        "decoder": decoder,
        "geometry": "row" if any("no grid" in note for note in notes) else "grid",
        "video": callable(getattr(type(found.base), parts.ENCODERS["video"], None)),
        "deepstack": family_of(one.model.config).smallest_layer(one.model.config) > 0,
    }
    if found.keyless:
        facts["keyless"] = True
    if found.sources:
        facts["shared keys"] = True
    if one.note and not one.note.startswith("specimen"):
        facts["note"] = one.note
    return facts


def _bounded(model_type: str) -> dict[str, Any]:
    """What is said of types whose layers choose keys, once their choice is smaller than the prompt."""
    one = shape(model_type)
    longest = family_of(one.model.config).longest(one.model.config)
    if longest is None or longest[0] > one.inputs["input_ids"].shape[1]:
        return {}
    try:
        with adaptprune.prune(
            one.model, "random", keep_ratio=KEEP_RATIO, layer=_layer(one, parts_of(one.model)), check=False
        ):
            one.model(**one.inputs)
    except AdaptPruneError as error:
        if "beyond" in str(error):
            return {"limit": "prompt and answer no longer than the budget of its sparse attention"}
    raise Wrong("its sparse attention chooses among keys, and pruning was not refused")


@torch.no_grad()
def _generated(one: Shape) -> Tensor:
    out = one.model.generate(
        **one.inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(out.logits, dim=1)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def sweep(types: list[str]) -> dict[str, dict[str, Any]]:
    """Outcomes of types, one after another, with a line each."""
    found = {}
    with _quiet():
        for number, model_type in enumerate(types, 1):
            start = time.perf_counter()
            found[model_type] = outcome(model_type)
            row = found[model_type]
            seconds = time.perf_counter() - start
            print(
                f"[{number}/{len(types)}] {model_type}: {row['tier']} {row.get('detail', '')} ({seconds:.1f} s)",
                flush=True,
            )
    return found


def differences(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]], whole: bool) -> list[str]:
    """What is not as it was expected, for people; `whole`: every type was tried."""
    lines = [f"{name}: new: {row}" for name, row in found.items() if name not in expected]
    lines += [f"{name}: {expected[name]} is now {row}" for name, row in found.items() if expected.get(name, row) != row]
    if whole:
        lines += [f"{name}: gone; it was {row}" for name, row in expected.items() if name not in found]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--write", action="store_true", help="take what is found for what is expected")
    arguments = parser.parse_args()
    start, there = time.perf_counter(), image_text_types()
    unknown = sorted({*arguments.types} - {*there})
    if unknown:
        print(f"transformers {installed()} has no {', '.join(unknown)}", file=sys.stderr)
        return 2
    found = sweep(arguments.types or list(there))
    tiers = [row["tier"] for row in found.values()]
    counts = ", ".join(f"{tiers.count(tier)} {tier}" for tier in sorted({*tiers}))
    print(f"{len(found)} types of transformers {installed()} in {time.perf_counter() - start:.0f} s: {counts}")
    expected = read()
    lines = differences(found, expected["types"], whole=not arguments.types)
    print("\n".join(lines) if lines else "all as expected")
    if arguments.write:
        kept = expected["types"] if arguments.types else {}
        rows = dict(sorted({**kept, **found}.items()))
        Path(FILE).write_text(json.dumps({"transformers": installed(), "types": rows}, indent=1) + "\n")
        return 0
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
