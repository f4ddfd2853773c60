"""The assumptions that are checked on a model, one by one, whenever it is to be pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptprune.hooks.seams import attention, cache, calls, layers, parts
from adaptprune.hooks.seams.parts import Parts


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
        "encoding",
        "what an encode method returns goes in place of placeholders; generate() encodes ahead if a forward takes that",
        lambda found, watched: parts.find_encoding(found),
    ),
    Seam(
        "layers",
        "a layer attends if it has an attention with projections, and then its cache holds keys; or it reads another's",
        lambda found, watched: layers.find(found.decoder.config, found.layers, found.keyless, found.sources),
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
        lambda found, watched: attention.find([layers.attention_of(layer) for layer in watched]),
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
