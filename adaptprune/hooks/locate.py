"""Where the visual tokens of a forward are: by their ids, by their embeddings, or by the features themselves.

A caller may hand over embeddings in place of ids. Placeholders among them are found by comparison with the
placeholder's embedding, as transformers does; features that were put in their places already, by comparison with what
was encoded under pruning. Embeddings that are neither those nor a token's are refused: nobody could say where the
pictures are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import Family, Layout
from adaptprune.families.base import SEEN, flat
from adaptprune.hooks.seams import calls, parts

#: Entries of an embedding that stand for all of it in comparisons, evenly spaced.
SAMPLED = 16
#: Pictures and videos whose features are remembered, the newest ones.
REMEMBERED = 1024
#: Those of which it is remembered, too, what was seen while they were encoded, which takes memory.
SHOWN = 64
#: Rows of the table of embeddings that are made at a time.
CHUNK = 8192

#: One row of a batch: of each picture, the places of its tokens (n,) and their cells (n, 3).
Found = list[tuple[Tensor, Tensor]]


def sample(rows: Tensor) -> Tensor:
    """Some entries of each embedding, (..., SAMPLED or fewer)."""
    return rows.detach()[..., :: max(1, rows.shape[-1] // SAMPLED)]


def _keys(rows: Tensor) -> list[bytes]:
    """Something to compare embeddings (N, D) by: equal if and only if their sampled entries are."""
    return _bytes(sample(rows))


def _bytes(samples: Tensor) -> list[bytes]:
    return [row.tobytes() for row in samples.float().cpu().contiguous().numpy() + 0.0]  # -0.0 is 0.0


class Noted:
    """Features that were encoded outside of a forward, and their cells: samples alone, so that it holds no memory."""

    def __init__(self) -> None:
        self._units: deque[tuple[Tensor, Tensor]] = deque(maxlen=REMEMBERED)
        self._seen: deque[tuple[Tensor, Any]] = deque(maxlen=SHOWN)
        self._table: set[bytes] = set()

    def add(self, features: Sequence[Tensor] | Tensor, cells: Sequence[Tensor]) -> None:
        """Remember features, (n, D) for each picture or video, and the cells of each, (n, 3).

        Features that a model has yet to add to (newlines) are not remembered: among embeddings they are refused.
        """
        rows, sizes = sample(flat(features)).clone(), [len(unit) for unit in cells]
        if sum(sizes) == len(rows):
            plain = [unit.clone() for unit in cells]
            self._units.extend(zip(rows.split(sizes), plain, strict=True))
            self._seen.extend(
                (own, getattr(unit, SEEN)) for own, unit in zip(plain, cells, strict=True) if hasattr(unit, SEEN)
            )

    def units(self, dtype: torch.dtype) -> list[tuple[list[bytes], Tensor]]:
        """What is remembered, as embeddings of a dtype are compared."""
        noted, seen = list(self._units), list(self._seen)  # other threads add to them
        shown = {}
        for cells, found in seen:
            shown[id(cells)] = own = cells.clone()
            setattr(own, SEEN, found)
        return [(_bytes(rows.to(dtype)), shown.get(id(cells), cells)) for rows, cells in noted]

    def strange(self, base: nn.Module, keys: Sequence[list[bytes]], like: Tensor) -> set[bytes]:
        """Those of some embeddings that are no token's."""
        wanted = set().union(*keys)
        unknown = wanted - self._table
        if unknown:  # the table is not made yet, or the weights have changed since
            self._table = _table(base, like)
            unknown = wanted - self._table
        return unknown


@torch.no_grad()
def _table(base: nn.Module, like: Tensor) -> set[bytes]:
    """The embeddings of all tokens, as they are compared."""
    known: set[bytes] = set()
    size = parts.num_tokens(base)
    for start in range(0, size, CHUNK):
        known.update(_keys(parts.embeddings_of(base, torch.arange(start, min(size, start + CHUNK)), like)))
    return known


def placeholders(
    base: nn.Module, config: Any, modalities: Sequence[str], ids: Tensor | None, embeds: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels of a prompt's tokens, (B, L) int64, equal where tokens are; and by modality where placeholders are.

    A prompt that has videos alone, but none of their placeholders, has those of pictures in place (GLM's models).
    """

    def where(modality: str) -> Tensor:
        token = int(parts.placeholder(config, modality) or 0)
        if ids is not None:
            return torch.eq(ids, token)
        return (rows == parts.embeddings_of(base, torch.tensor([token]), rows)[0]).all(dim=-1)

    if ids is None:
        assert embeds is not None
        rows = embeds.detach()
    found = {modality: where(modality) for modality in modalities}
    if list(found) == ["video"] and not bool(found["video"].any()):
        found["video"] = where("image")
    return ids if ids is not None else _labels(rows), found


def _labels(embeds: Tensor) -> Tensor:
    _, labels = torch.unique(sample(embeds).flatten(0, 1), dim=0, return_inverse=True)
    return labels.view(embeds.shape[:2])


def merged(
    base: nn.Module,
    family: Family,
    embeds: Tensor,
    mask: Tensor | None,
    noted: Noted,
    learned: Callable[[], Tensor] | None,
) -> list[Layout] | None:
    """The visual tokens among embeddings (B, L, D) that features were put into before; None for text.

    Parameters
    ----------
    mask : Tensor or None, (B, past + L)
        Zero where there is padding, which may be anything.
    noted : Noted
        What was encoded under pruning.
    learned : callable or None
        Embeddings that are no tokens' and no pictures' either, (n, D): PEFT's.

    Raises
    ------
    AdaptPruneError
        Some embeddings are none of these.
    """
    lines = [_keys(line) for line in embeds]
    unknown = noted.strange(base, lines, embeds)
    if unknown and learned is not None:
        unknown -= set(_keys(learned().to(embeds.dtype)))
    if not unknown:
        return None
    units, rows, length = noted.units(embeds.dtype), [], embeds.shape[1]
    real = torch.ones(embeds.shape[:2]) if mask is None else mask[:, mask.shape[1] - length :]
    for keys, seen in zip(lines, real.tolist(), strict=True):
        found, taken = _walk(keys, units)
        strange = [place for place, key in enumerate(keys) if key in unknown and place not in taken and seen[place]]
        if strange:
            raise AdaptPruneError(
                f"inputs_embeds holds {len(strange)} embeddings that are no token's (the first at place {strange[0]}), "
                f"and none of the features of the last {REMEMBERED} pictures that were encoded under this pruning: it "
                "is not known which of them are pictures. Pass input_ids with the pictures, or encode them "
                "(get_image_features) while the model is pruned."
            )
        rows.append(found)
    if not any(rows):
        return None
    return [family.row(line, found) for line, found in zip(_labels(embeds), rows, strict=True)]


def _walk(keys: list[bytes], units: list[tuple[list[bytes], Tensor]]) -> tuple[Found, set[int]]:
    """The noted features among the embeddings of one row, in their order, and their places."""
    begins: dict[bytes, list[int]] = {}
    for number in range(len(units) - 1, -1, -1):  # the newest first: equal pictures have equal cells
        begins.setdefault(units[number][0][0], []).append(number)
    visual = {key for rows, _ in units for key in rows}
    found: Found = []
    taken: set[int] = set()
    for start, key in enumerate(keys):
        if start in taken:
            continue
        for number in begins.get(key, ()):
            places = _follow(keys, start, units[number][0], visual)
            if places is not None:
                found.append((torch.tensor(places), units[number][1]))
                taken.update(places)
                break
    return found, taken


def _follow(keys: list[bytes], start: int, rows: list[bytes], visual: set[bytes]) -> list[int] | None:
    """Places of the features of one picture from `start` on, with text between them or not; None if they break off."""
    places: list[int] = []
    for place in range(start, len(keys)):
        if keys[place] == rows[len(places)]:
            places.append(place)
            if len(places) == len(rows):
                return places
        elif keys[place] in visual:
            return None
    return None


def layouts(
    base: nn.Module,
    family: Family,
    config: Any,
    inputs: Mapping[str, Any],
    encoded: Mapping[str, Sequence[Tensor]],
) -> list[Layout]:
    """The visual tokens of a forward of the base whose pictures were encoded: `encoded` has their cells by modality."""
    ids, embeds = inputs.get(calls.IDS), inputs.get(calls.EMBEDS)
    labels, found = placeholders(base, config, list(encoded), ids, embeds)
    return family.layout(labels, found, encoded)
