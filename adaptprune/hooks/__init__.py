"""Pruning inside a stock transformers model.

No forward is copied and no class is swapped. Pre-hooks rewrite what the decoder layers from K on are handed; a
registered attention function looks at one row of attention in layer K-1 and then calls the model's own. What was
dropped is remembered on the KV cache, never on the model, so that interleaved generations do not see each other.

Everything that is assumed about how transformers works is in `adaptprune.hooks.seams`, which other rooms use, too; it
is imported without the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptprune.lazily import attributes

if TYPE_CHECKING:
    from adaptprune.hooks.handle import PruneHandle, prune

__all__ = ["PruneHandle", "prune"]

__getattr__ = attributes(__name__, dict.fromkeys(__all__, "handle"))
