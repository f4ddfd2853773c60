"""What a selection rule sees (VisualTokens) and what it is (Pruner). Pure maths: knows nothing of models or hooks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from adaptprune.checks import called, fits, whole
from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.registry import did_you_mean, parse_spec

#: Cues that the hooks can capture, and where each comes from.
CUES = {
    "attention": "probabilities of the last prompt token, at decoder layer K-1",
    "keys": "what layer K's key projection makes of the normalised hidden state, before RoPE",
    "raw_keys": "the same of the hidden state before its layer norm, as the released AdaptPrune code does",
    "previous_keys": "the output of layer K-1's key projection, before RoPE: already computed, costs nothing",
}


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens that share a budget (see `BUDGETS`), as they arrive at the layer where they are pruned.

    Attributes
    ----------
    hidden : Tensor, (N, D)
        Hidden states before decoder layer K (K = 0: the projected image features).
    coords : Tensor, (N, 3), int64
        Grid (image, tile or frame), row and column of each token; rows and columns count from 0.
    attention : Tensor or None, (H, N), float32
        Per head, the attention probability from the last prompt token, at layer K-1; a row over all the tokens of
        the prompt sums to 1, so these visual columns sum to less.
    keys : Tensor or None, (N, Dk)
        Key states, all heads concatenated; which ones, the pruner chooses through `Pruner.needs`.
    """

    hidden: Tensor
    coords: Tensor
    attention: Tensor | None = None
    keys: Tensor | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]


#: What shares one budget.
BUDGETS = {
    "image": "each image (or video) has a budget of its own",
    "grid": "each tile or frame has",
    "joint": "all images of a prompt share one",
}


def budget(keep_ratio: float, num_visual: int) -> int:
    """How many tokens are kept: ``max(1, floor(keep_ratio * num_visual))``, as the released code rounds."""
    return max(1, math.floor(keep_ratio * num_visual))


@dataclass(frozen=True)
class Pruner:
    """A selection rule: a dataclass is both its configuration and its behaviour.

    Subclasses set `name` and `needs` and override `score` (higher is kept) or `select`.

    Parameters
    ----------
    keep_ratio : float
        Fraction of the visual tokens that is KEPT, in (0, 1]: ``max(1, floor(keep_ratio * N))`` of the N that share a
        budget. 1 leaves the model untouched.
    layer : int
        K: tokens leave before decoder layer K (layers count from 0). 0 is before the language model.
    num_keep : int, optional
        How many tokens are kept at most, in place of `keep_ratio`, for every N that share a budget.
    budget : {"image", "grid", "joint"}
        What shares one budget: an image (or video), a tile or frame, or all of a prompt.
    """

    keep_ratio: float = 0.5
    layer: int = 2
    num_keep: int | None = None
    budget: str = "image"

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        ratio = self.keep_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise AdaptPruneError(
                f"keep_ratio={ratio!r} is not allowed: it is the fraction of visual tokens KEPT, above 0 and at most 1."
            )
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise AdaptPruneError(f"layer={self.layer!r} is not allowed: it is a decoder layer's number, 0 or more.")
        if self.num_keep is not None:
            whole("num_keep", self.num_keep, 1, 2**31)
        if not isinstance(self.budget, str) or self.budget not in BUDGETS:
            raise AdaptPruneError(f"unknown budget={self.budget!r}.{did_you_mean(str(self.budget), BUDGETS)}")
        if self.layer < self.smallest_layer:
            raise AdaptPruneError(
                f"layer={self.layer} is too early for {self.name!r}, which ranks tokens by what layer K-1 computed: "
                f"use layer={self.smallest_layer} or later, or a method that needs no cue (random, grid)."
            )

    @property
    def needs(self) -> frozenset[str]:
        """The cues (keys of `CUES`) that the hooks have to capture for this rule."""
        return frozenset()

    @property
    def smallest_layer(self) -> int:
        """The first layer before which this rule can prune: cues of layer K-1 need K >= 1."""
        return 1 if self.needs & {"attention", "previous_keys"} else 0

    def score(self, tokens: VisualTokens) -> Tensor:
        """Rank of each token, (N,), higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither score nor select")

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        """Indices of the kept tokens, (num_keep,) int64, ascending, unique.

        The default takes the highest scores; ties go to the lower index. A rule that cannot hit the budget exactly may
        keep fewer, never more.
        """
        order = torch.sort(self.score(tokens), descending=True, stable=True).indices
        return order[:num_keep].sort().values

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        """Hidden states that the kept tokens go on with, (num_keep, D); the default leaves them as they are."""
        return tokens.hidden[keep]

    def schedule(self, num_layers: int) -> dict[int, float]:
        """Decoder layer to the fraction of each image's original tokens that is kept from it on."""
        return {self.layer: self.keep_ratio}

    def num_kept(self, keep_ratio: float, num_visual: int) -> int:
        """How many of `num_visual` tokens that share a budget are kept at a stage with this ratio."""
        return budget(keep_ratio, num_visual) if self.num_keep is None else min(self.num_keep, num_visual)

    def groups(self, images: Tensor, coords: Tensor) -> Tensor:
        """The budget that each token of a prompt belongs to, (N,) int64, from its image (N,) and place (N, 3)."""
        return {"image": images, "grid": coords[:, 0], "joint": torch.zeros_like(images)}[self.budget]

    def warm_up(self) -> None:
        """Compile or load what `select` will use, so that the first prompt does not pay for it."""

    def replace(self, **options: Any) -> Pruner:
        """A copy with other options; an unknown option is an error that names the closest one."""
        allowed = [field.name for field in dataclasses.fields(self) if field.init]
        for key in options:
            if key not in allowed:
                raise AdaptPruneError(f"unknown option {key!r} for {self.name!r}.{did_you_mean(key, allowed)}")
        if options.get("num_keep") is not None and "keep_ratio" in options:
            raise AdaptPruneError(
                f"keep_ratio={options['keep_ratio']} and num_keep={options['num_keep']} are two ways to say how many "
                "tokens are kept: give one."
            )
        if "keep_ratio" in options:
            options.setdefault("num_keep", None)  # the newer word counts
        try:
            made = dataclasses.replace(self, **options)
        except AdaptPruneError:
            raise
        except Exception as error:  # another package's own checks, or what it computes from a value of another type
            self._check_types(options)
            shown = ", ".join(f"{key}={value!r}" for key, value in options.items())
            raise AdaptPruneError(f"{self.name!r} refuses {shown}: {first_line(error)}") from error
        self._check_types(options)  # last: the rule itself may say it better
        return made

    def _check_types(self, options: dict[str, Any]) -> None:
        """Raise if a value is not of the type that its field has."""
        try:
            hints = get_type_hints(type(self))
        except Exception:  # names that only a type checker imports
            return
        for key, value in options.items():
            if not fits(value, hints[key]):
                hint = f" (write {key}={str(value)!r})" if fits(str(value), hints[key]) else ""
                raise AdaptPruneError(f"{key}={value!r} is not allowed: it is {called(hints[key])}{hint}.")

    def spec(self) -> str:
        """The spec string that makes this very pruner, with every option spelt out."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        del options["keep_ratio" if self.num_keep is not None else "num_keep"]
        return f"{self.name}:" + ",".join(f"{key}={_written(value)}" for key, value in options.items())


def _written(value: Any) -> str:
    """An option's value as `parse_spec` reads it back: quoted, if it would be taken for something else."""
    if value == math.inf:
        return "1e999"
    try:
        same = parse_spec(f"x:y={value}")[1] == {"y": value}
    except AdaptPruneError:
        same = False
    plain = same and not (isinstance(value, str) and set(value) & set("'\"()[]{}\\"))
    return str(value) if plain else repr(value)
