"""Keeps other libraries' advice, and progress bars that nobody watches, out of our output."""

from __future__ import annotations

import logging
import os
import sys


def third_parties() -> None:
    """Call before transformers is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line per layer about its casts


def progress_bars(wanted: bool = True) -> None:
    """Show the bars of loading a model only to somebody at a terminal."""
    from transformers.utils import logging as their_logging

    if not (wanted and sys.stderr.isatty()):
        their_logging.disable_progress_bar()
