"""Everything that the project assumes about transformers, named once. No other room knows its inside (a test holds it).

| file | what is assumed |
|---|---|
| `versions` | which releases were tested, and what is said on another |
| `parts` | where base, decoder, layers, encoders, placeholders and embeddings of a model are; what its config says |
| `calls` | how layers are called, what a decoder returns, what `generate()` asks for and makes |
| `cache` | the argument that the KV cache travels by, its classes, and ours that hold less than they report |
| `attention` | the attention interface, and which implementation runs |
| `processors` | attributes of processors and tokenizers, and which of their classes need torchvision |
| `table` | the list of them, and the check |

Each has a `find` that checks its assumptions on a model in hand (signatures and attributes, no forward) and says how it
found them; `table.check` runs them all, at every `prune()`. A release of transformers that moves a seam is met here alone.
"""

from adaptprune.hooks.seams.parts import Parts, parts_of

__all__ = ["Parts", "parts_of"]
