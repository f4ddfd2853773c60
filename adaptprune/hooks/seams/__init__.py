"""Everything that the project assumes about transformers, named once. No other room knows its inside (a test holds it).

| file | what is assumed |
|---|---|
| `versions` | which releases were tested, and what is said on another |
| `catalogue` | which models there are |
| `parts` | where base, decoder, layers, encoders, placeholders and embeddings of a model are; what its config says |
| `layers` | which layers attend and which share keys, how their attention and its keys are found |
| `towers` | where a vision tower's layers, attention and class token are; which projectors work token by token |
| `calls` | how layers are called, what a decoder returns, what `generate()` asks for and makes |
| `cache` | the argument that the KV cache travels by, its classes, and ours that hold less than they report |
| `rotary` | which modules make position embeddings, and how others are made |
| `attention` | the attention interface, and which implementation runs |
| `processors` | attributes of processors and tokenizers, and which of their classes need torchvision |

Those that are about a model have a `find` that checks the assumptions on one in hand (signatures and attributes, no
forward) and says how it found them; `check` (`table`) runs them all, at every `prune()`. A release of transformers that
moves a seam is met here alone. Nothing is imported before it is used: what `versions` knows is to be had, too, where
transformers itself cannot be imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptprune.lazily import attributes

if TYPE_CHECKING:
    from adaptprune.hooks.seams.parts import Parts, parts_of
    from adaptprune.hooks.seams.table import SEAMS, Seam, check

_HOME = {"Parts": "parts", "parts_of": "parts", "SEAMS": "table", "Seam": "table", "check": "table"}

__all__ = ["SEAMS", "Parts", "Seam", "check", "parts_of"]

__getattr__ = attributes(__name__, _HOME)
