"""What was found of every model type of a release of transformers (`make sweep` tries them all on tiny models)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


@cache
def read() -> dict[str, Any]:
    """The committed outcomes: `transformers`, the release, and `types`, a row of plain data for each model type.

    A row has a `tier` ("tested", "checked", "refused"). If it is refused, `detail` says why; otherwise there are
    `decoders`, the types of the decoders that were tried, `geometry` ("grid", or "row" where no grid is known),
    `video`, `deepstack` (tokens can leave only after some layers), and what else is special.
    """
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found
