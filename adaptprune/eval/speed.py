"""Times and memory of each batch, beside the answers: they differ from run to run, the answers do not.

A batch's times: `encode_ms` is the vision tower's, measured once for all columns, which share its output;
`first_token_ms` is what reading all prompts took besides, one after another, `total_ms` what it took to the last token.
The time to the first tokens of all questions is the sum of the first two.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptprune.disk import writing


@dataclass(frozen=True)
class Batch:
    """One batch under one column; `start` is its first question's place."""

    start: int
    rows: int
    encode_ms: float
    first_token_ms: float
    total_ms: float
    new_tokens: int
    kv_bytes: int

    def write(self, path: Path) -> None:
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: round(value, 3) for name, value in asdict(self).items()}) + "\n")


@dataclass(frozen=True)
class Speed:
    """One column: medians over batches, rates over all of them, KV bytes per question once its prompt is read."""

    first_token_ms: float
    tokens_per_second: float
    kv_bytes: float
    batches: int

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


def read(path: Path) -> Speed | None:
    """What a column's batches come to. A batch that was run twice because of a kill counts once."""
    found: dict[int, Mapping[str, Any]] = {}
    if path.exists():
        for raw in path.read_bytes().splitlines():
            try:
                line = json.loads(raw)
                found[line["start"]] = {name: line[name] for name in Batch.__dataclass_fields__}
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill: the batch was run again
    if not found:
        return None
    lines = list(found.values())
    decode = sum(line["total_ms"] - line["first_token_ms"] for line in lines) / 1000
    tokens = sum(line["new_tokens"] - line["rows"] for line in lines)
    return Speed(
        first_token_ms=statistics.median(line["encode_ms"] + line["first_token_ms"] for line in lines),
        tokens_per_second=tokens / decode if tokens > 0 and decode > 0 else 0.0,
        kv_bytes=sum(line["kv_bytes"] for line in lines) / sum(line["rows"] for line in lines),
        batches=len(lines),
    )
