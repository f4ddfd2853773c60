"""What was found of every model type of a release of transformers (`make sweep` tries them all on tiny models)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


def read() -> dict[str, Any]:
    """The committed outcomes: `transformers`, the release, and `types`, a row of plain data for each model type."""
    if not FILE.exists():
        return {"transformers": "", "types": {}}
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found
