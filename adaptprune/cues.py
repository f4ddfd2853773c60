"""What a selection rule sees: visual tokens and, by name, what a model has computed about them. Tensors only.

N are the visual tokens that share a budget, T the instruction tokens: the text behind the last visual token of the
prompt (at least the prompt's last token), without padding. Rows of instruction tokens are in the order of the prompt,
the prompt's last token being the last of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

#: Cues that the hooks can capture, and where each comes from. K is the layer before which tokens leave.
CUES = {
    "attention": "probabilities of the last prompt token, at decoder layer K-1",
    "rows": "probabilities of every instruction token, at decoder layer K-1",
    "next_attention": "probabilities of the last prompt token, as layer K itself would have them",
    "keys": "what layer K's key projection makes of the normalised hidden state, before RoPE",
    "raw_keys": "the same of the hidden state before its layer norm, as the released AdaptPrune code does",
    "previous_keys": "the output of layer K-1's key projection, before RoPE: already computed, costs nothing",
    "rotated_keys": "keys of layer K-1 as they are cached: after RoPE",
    "text_hidden": "hidden states of the instruction tokens before layer K",
    "previous_hidden": "hidden states before layer K-1",
    "final": "what the decoder's last norm makes of the hidden states before layer K",
    "features": "projected features and embeddings of the instruction, before layer 0",
    "affinity": "layer 0's queries of the instruction times its keys, without RoPE: needs no attention map",
    "tower": "a layer of the vision tower: its attention and its keys (write tower:-2)",
    "projector": "the projector, and what it was handed",
    "class_state": "the tower's class token, projected as its patches are",
    "rotary": "position embeddings that layer K is handed",
}
#: Values that are apart by less, relative to the largest, are equal.
ROUNDING = 1e-12
#: Cues of layer K-1, so that tokens cannot leave before layer 0.
BELOW = frozenset({"attention", "rows", "previous_keys", "rotated_keys", "previous_hidden"})


@dataclass(frozen=True)
class TowerLayer:
    """One layer of the vision tower, for N visual tokens; of tokens that several patches make up, means over these.

    Attributes
    ----------
    attention : Tensor, (H, N), float32
        Per head, the attention probability from the class token to each token or, where there is none, what the token
        receives on average from all patches of its picture.
    keys : Tensor, (H, N, d)
        Keys as they are handed to the attention.
    class_query : Tensor or None, (H, d)
        The class token's query; None where there is none. Of several pictures or tiles, (N, H, d): each token's own.
    """

    attention: Tensor
    keys: Tensor
    class_query: Tensor | None = None

    @property
    def has_class(self) -> bool:
        """Whether attention is a class token's; else it is received attention."""
        return self.class_query is not None

    def subset(self, index: Tensor) -> TowerLayer:
        """Those of some tokens."""
        query = self.class_query
        return TowerLayer(
            self.attention[:, index],
            self.keys[:, index],
            query[index] if query is not None and query.ndim == 3 else query,
        )


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens that share a budget, as they arrive at the layer before which some leave.

    What a rule did not ask for (`Pruner.cues`) is None.

    Attributes
    ----------
    hidden : Tensor, (N, D)
        Hidden states before decoder layer K (K = 0: the projected image features).
    coords : Tensor, (N, 3), int64
        Grid (image, tile or frame), row and column of each token; rows and columns count from 0.
    layer : int
        K.
    num_layers : int
        Layers of the decoder.
    size : int
        How many tokens shared the budget before any left; 0: as many as there are.
    attention, next_attention : Tensor or None, (H, N), float32
        Per head, the attention probability from the last prompt token; a row over all the tokens of the prompt sums to
        1, so these visual columns sum to less.
    rows : Tensor or None, (H, T, N), float32
        The same of every instruction token; the last row is `attention`.
    keys : Tensor or None, (N, Dk)
        Key states, all heads concatenated; which ones, the rule chooses: "keys", "raw_keys" or "previous_keys".
    rotated_keys, text_rotated_keys : Tensor or None, (N, Hk * d) and (T, Hk * d)
    text_hidden : Tensor or None, (T, D)
    previous_hidden : Tensor or None, (N, D)
    final, text_final : Tensor or None, (N, D) and (T, D)
    features, text : Tensor or None, (N, D) and (T, D)
        Both of before layer 0, wherever tokens leave: the projected image features, and the instruction's embeddings.
    affinity : Tensor or None, (H, T, N), float32
        ``q . k / sqrt(d)``, key heads repeated for the queries of their group; no softmax.
    tower : mapping of int to TowerLayer
        By the layer's number as the rule wrote it: -2 is the last but one.
    projector_input : Tensor or None, (N, g, Di)
        What the projector was handed for each token: g patches.
    project : callable or None
        The projector: (N, g, Di) to (N, D).
    class_state : Tensor or None, (D,)
    rotary : (Tensor, Tensor) or None, (N, d) each
        Cosine and sine.
    memo : dict
        What the rule itself has left here at an earlier stage of the same prompt, for the same budget.
    """

    hidden: Tensor
    coords: Tensor
    attention: Tensor | None = None
    keys: Tensor | None = None
    layer: int = 0
    num_layers: int = 0
    size: int = 0
    rows: Tensor | None = None
    next_attention: Tensor | None = None
    rotated_keys: Tensor | None = None
    text_rotated_keys: Tensor | None = None
    text_hidden: Tensor | None = None
    previous_hidden: Tensor | None = None
    final: Tensor | None = None
    text_final: Tensor | None = None
    features: Tensor | None = None
    text: Tensor | None = None
    affinity: Tensor | None = None
    tower: Mapping[int, TowerLayer] = field(default_factory=dict)
    projector_input: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None
    class_state: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.hidden.shape[0]

    @property
    def whole(self) -> int:
        """How many tokens shared the budget before any left."""
        return self.size or len(self)

    def subset(self, index: Tensor) -> VisualTokens:
        """Some of the tokens, (n,) int64, with everything that is known of them."""
        changed: dict[str, Any] = {"size": self.whole}
        for name, axis in _PER_TOKEN.items():
            value = getattr(self, name)
            if value is not None:
                changed[name] = value.index_select(axis, index.to(value.device))
        if self.rotary is not None:
            changed["rotary"] = tuple(part[index.to(part.device)] for part in self.rotary)
        changed["tower"] = {number: layer.subset(index) for number, layer in self.tower.items()}
        return dataclasses.replace(self, **changed)


#: Which axis of a cue counts visual tokens.
_PER_TOKEN = {
    "hidden": 0,
    "coords": 0,
    "attention": 1,
    "keys": 0,
    "rows": 2,
    "next_attention": 1,
    "rotated_keys": 0,
    "previous_hidden": 0,
    "final": 0,
    "features": 0,
    "affinity": 2,
    "projector_input": 0,
}


def is_constant(values: Tensor) -> bool:
    """Whether values differ by rounding at most."""
    low, high = torch.aminmax(values)
    return bool(high - low <= ROUNDING * torch.maximum(low.abs(), high.abs()))


def min_max(values: Tensor) -> Tensor:
    """Values moved and stretched to 0..1; all of them 0 where they are constant."""
    if is_constant(values):
        return torch.zeros_like(values)
    low, high = torch.aminmax(values)
    return (values - low) / (high - low)
