"""What is checked around every forward: before it, whether it can be pruned; after it, whether it was.

After a forward the checks are facts, not hopes: which layers ran, which cache was filled, how many keys each layer
holds. They are comparisons of integers, so they are always on (`benchmarks/checks.py` measures what they cost). A hook
that does not run any more, an argument that has another name, a cache of another make: each is an error, never a wrong
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError, CannotReselect
from adaptprune.hooks.holds import broken
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams import parts
from adaptprune.hooks.seams.calls import KNOWN, WithoutRotary, rotary
from adaptprune.hooks.state import Call

# -- before ------------------------------------------------------------------------------------------------------------


def check_decoder(decoder: nn.Module, backend: str, call: Call) -> None:
    """Refuse what cannot be pruned by the way in which it is run.

    Flash attention counts places in the cache rather than positions, so that windows would reach further back; and
    gradient checkpointing runs the layers again after the forward whose tokens were dropped.
    """
    kv.check(call.cache)
    width = parts.sliding_window(decoder) if backend.startswith("flash") else None
    if width is not None and call.length > 1 and call.total > width:
        raise AdaptPruneError(
            f"the prompt has {call.total} tokens, more than the decoder's sliding window of {width}, which flash "
            "attention would count in kept tokens instead of positions: load the model with attn_implementation='sdpa'."
        )
    if parts.recomputes(decoder):
        raise AdaptPruneError(
            "gradient checkpointing runs decoder layers again in the backward pass, when it is no longer known what "
            "was pruned: call model.gradient_checkpointing_disable()."
        )


def check_length(call: Call, longest: tuple[int, str] | None) -> None:
    """Refuse a pruned sequence of more positions than its model can be pruned with, and say why."""
    if longest is not None and call.total > longest[0] and (call.layouts is not None or call.state.views):
        raise AdaptPruneError(
            f"the sequence has {call.total} tokens, and beyond {longest[0]} {longest[1]}, which cannot be pruned: "
            "shorten the prompt or the answer, or use the model unpruned."
        )


def check_whole(call: Call, visual: bool) -> None:
    """Refuse a prompt that `generate()` reads in chunks: its last token, which ranks visual tokens, is yet to come.

    Parameters
    ----------
    visual : bool
        Whether visual tokens are at stake: pictures were given, or old ones are to be chosen anew.
    """
    if visual and call.prompt is not None and call.total < call.prompt:
        raise AdaptPruneError(
            f"generate() reads {call.total} of the prompt's {call.prompt} tokens first, and pruning needs its last one "
            "to choose: leave prefill_chunk_size out."
        )


def remembered_rotary(arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The position embeddings that a layer is handed; CannotReselect if there are none to remember."""
    try:
        return rotary(arguments)
    except WithoutRotary as error:
        raise CannotReselect(
            f"reselect=True needs position embeddings that are handed to the layers, and {error}: start a new cache at "
            "every turn instead."
        ) from None


def check_alike(call: Call, arguments: Mapping[str, Any]) -> None:
    """Refuse to choose anew where later turns would lack what a layer was handed: one position embedding is remembered.

    A look at the first turn is enough, for a conversation that is chosen anew begins under pruning.
    """
    if call.length == 1 or call.anew is not None:
        return
    pair = remembered_rotary(arguments)
    known = call.first_rotary = call.first_rotary or pair
    if any(a is not b and not torch.equal(a, b.to(a.device)) for a, b in zip(known, pair, strict=True)):
        raise CannotReselect(
            "reselect=True remembers one position embedding for all layers, and in this decoder they differ by layer: "
            "start a new cache at every turn instead."
        )
    for name, value in arguments.items():
        if name not in KNOWN and isinstance(value, Tensor) and value.ndim > 1 and call.length in value.shape[1:3]:
            raise CannotReselect(
                f"reselect=True runs layers over the conversation again, and this decoder hands them {name} of one "
                "turn's tokens alone: start a new cache at every turn instead."
            )


def check_draft(call: Call) -> None:
    """Refuse a draft's guesses that are read together with a prompt whose dropped tokens are to be evicted then.

    The guesses would see, below the pruning layer, what tokens that are read one by one no longer see.
    """
    if call.prompt is not None and call.past < call.prompt < call.total and call.layouts is not None:
        raise AdaptPruneError("evict_below=True does not go with assisted decoding or prompt lookup: leave one out.")


def check_continued(call: Call) -> None:
    """Refuse a cache that was pruned and does not say how, that lost keys, or that was filled by another batch."""
    views, layers = call.state.views, kv.layers_of(call.cache)
    if not views:
        full = {kv.held(layer) for layer in layers if kv.width(layer) is None and not kv.keyless(layer)}
        if len(full) > 1 or any(map(kv.lacks, layers)):
            raise broken("the KV cache holds pruned layers, and nothing is known of what they dropped")
        return
    for view in views.values():
        if view.index.shape[0] != call.batch:
            raise AdaptPruneError(
                f"the cache was filled with a batch of {view.index.shape[0]} prompts and is continued with "
                f"{call.batch}: continue with the same batch."
            )
    check_held(call, call.past)


# -- after -------------------------------------------------------------------------------------------------------------


def check_forward(call: Call, output: Any, hooked: int) -> None:
    """Compare a decoder's forward with what the hooks know of it.

    Parameters
    ----------
    call : Call
    output
        What the decoder returned.
    hooked : int
        How many of its layers have hooks.
    """
    if call.layers != hooked:
        raise broken(f"{hooked} decoder layers have hooks, and {call.layers} of them ran")
    returned = kv.cache_of(output)
    if returned is not None and returned is not call.cache:
        raise broken("the decoder returned a KV cache that its layers were not seen to be handed")


def check_held(call: Call, total: int) -> None:
    """Compare what every layer of the cache holds, at `total` positions, with what was kept."""
    views = call.state.views
    if not views:
        return
    count = total
    for index, layer in enumerate(kv.layers_of(call.cache)):
        if not index or index in views:
            view = call.view_at(index)
            count = total if view is None else view.held(total)
        found = kv.held(layer)
        if kv.keyless(layer):
            continue
        if found != count and not _slid(layer, found, count):
            raise broken(f"layer {index} holds {found} keys instead of the {count} that were kept")


def _slid(layer: Any, found: int, count: int) -> bool:
    """Whether a layer holds fewer keys than were kept because its window has moved on."""
    width = kv.width(layer)
    # one that records its past holds more than its window until it is cropped
    return width is not None and (kv.records_past(layer) or found == min(count, width - 1))


def check_pictures(shown: bool, encoded: bool, call: Call | None) -> None:
    """Compare a forward of the base with what became of its pictures.

    Parameters
    ----------
    shown : bool
        Whether its arguments held pictures, videos or features.
    encoded : bool
        Whether their places are known.
    call : Call or None
        The decoder's forward in it.
    """
    if call is None:
        raise broken(
            "an image was given and the decoder's hooks did not run" if shown else "the decoder's hooks did not run"
        )
    if shown and not encoded:
        raise broken(
            f"pictures were given, and none of {', '.join(parts.ENCODERS.values())} was seen to encode them, so no "
            "visual token was pruned"
        )
    if encoded and not call.rows:
        raise AdaptPruneError("an image was given but no visual token was pruned: the prompt has no image placeholder.")
