"""Pruning inside a stock transformers model: the only part of the project that depends on how transformers works.

No forward is copied and no class is swapped. Pre-hooks rewrite what the decoder layers from K on are handed; a
registered attention function looks at one row of attention in layer K-1 and then calls the model's own. What was
dropped is remembered on the KV cache, never on the model, so that interleaved generations do not see each other.
"""

from adaptprune.hooks.handle import PruneHandle, prune

__all__ = ["PruneHandle", "prune"]
