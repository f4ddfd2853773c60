"""A pytest plugin (`-p tools.used`) that notes which transformers the tests have really imported.

What is meant to be imported and what is are two things. The file that `TRANSFORMERS_USED` names says what was: the
module's version, the version in its metadata, and where it lies.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path


def pytest_sessionfinish() -> None:
    module, torch = sys.modules.get("transformers"), sys.modules.get("torch")
    target = os.environ.get("TRANSFORMERS_USED")
    if target and module is not None and torch is not None:
        note = {
            "version": module.__version__,
            "metadata": importlib.metadata.version("transformers"),
            "file": str(module.__file__),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        }
        Path(target).write_text(json.dumps(note))
