"""Everything that the project assumes about transformers, named once. No other room knows its inside (a test holds it).

| file | what is assumed |
|---|---|
| `versions` | which releases were tested, and what is said on another |
| `catalogue` | which models there are |
| `parts` | where base, decoder, layers, encoders, placeholders and embeddings of a model are; what its config says |
| `calls` | how layers are called, what a decoder returns, what `generate()` asks for and makes |
| `cache` | the argument that the KV cache travels by, its classes, and ours that hold less than they report |
| `attention` | the attention interface, and which implementation runs |
| `processors` | attributes of processors and tokenizers, and which of their classes need torchvision |

Those that are about a model have a `find` that checks the assumptions on one in hand (signatures and attributes, no
forward) and says how it found them; `check` runs them all, at every `prune()`. A release of transformers that moves a
seam is met here alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptprune.hooks.seams import attention, cache, calls, parts
from adaptprune.hooks.seams.parts import Parts, parts_of


@dataclass(frozen=True)
class Seam:
    """One assumption.

    Attributes
    ----------
    name : str
        As errors call it.
    what : str
        What is assumed, in one sentence.
    find : callable
        From `Parts` and the layers whose attention is watched to how it is met here; raises AdaptPruneError.
    """

    name: str
    what: str
    find: Callable[[Parts, list[Any]], str]


SEAMS = (
    Seam(
        "parts",
        "the base encodes pictures by get_image_features and holds a decoder with a list of layers",
        lambda found, watched: parts.find(found),
    ),
    Seam(
        "calls",
        "layers take hidden states, a mask and positions; generate() asks the model for the arguments of its forwards",
        lambda found, watched: calls.find(found.model, found.layers),
    ),
    Seam(
        "cache",
        "decoder and layers are handed one cache by one name, whose layers concatenate keys",
        lambda found, watched: cache.find(found.decoder, found.layers),
    ),
    Seam(
        "attention",
        "attention modules look their implementation up by the name in their config",
        lambda found, watched: attention.find([parts.attention_of(layer) for layer in watched]),
    ),
)


def check(found: Parts, watched: list[Any]) -> dict[str, str]:
    """How each seam is met by a model: name to finding.

    Parameters
    ----------
    found : Parts
    watched : list of nn.Module
        Layers whose attention a method looks at.

    Raises
    ------
    AdaptPruneError
        A seam that is not there: it names the seam, the installed release and the releases that work.
    """
    return {seam.name: seam.find(found, watched) for seam in SEAMS}


__all__ = ["SEAMS", "Parts", "Seam", "attention", "cache", "calls", "check", "parts", "parts_of"]
