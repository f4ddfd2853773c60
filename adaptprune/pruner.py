"""What a selection rule is. Pure maths: knows nothing of models or hooks (`adaptprune.cues` is what it sees)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from adaptprune.checks import called, fits, fraction, not_negative, one_of, whole
from adaptprune.cues import BELOW, VisualTokens
from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.registry import did_you_mean, parse_spec

#: What shares one budget.
BUDGETS = {
    "image": "each image (or video) has a budget of its own",
    "grid": "each tile or frame has",
    "joint": "all images of a prompt share one",
}


def budget(keep_ratio: float, num_visual: int) -> int:
    """How many tokens are kept: ``max(1, floor(keep_ratio * num_visual))``, as the released code rounds."""
    return max(1, math.floor(keep_ratio * num_visual))


def ranked(scores: Tensor) -> Tensor:
    """Places of scores, the highest first, (N,) int64; of equals, the lower index first."""
    return torch.sort(scores, descending=True, stable=True).indices


def highest(scores: Tensor, count: int) -> Tensor:
    """Places of the highest scores, (count,) int64, ascending; of equals, those of lower index."""
    return ranked(scores)[:count].sort().values


def others(taken: Tensor, size: int) -> Tensor:
    """The places of `size` that are not `taken`, int64, ascending."""
    left = torch.ones(size, dtype=torch.bool, device=taken.device)
    left[taken] = False
    return left.nonzero()[:, 0]


def coordinate_tokens(tokens: VisualTokens, share: float) -> Tensor:
    """Tokens whose position embedding points furthest along cosine or sine (IVC), ascending: `share` of N of each."""
    assert tokens.rotary is not None
    count = budget(share, len(tokens))
    kinds = [highest(part.double().flatten(1).mean(dim=1), count) for part in tokens.rotary]
    both: Tensor = torch.unique(torch.cat(kinds))
    return both


#: Where rules take tokens out: before the first decoder layer, before a later one, both, or wherever they are told to.
SITES = ("encoder", "decoder", "both", "any")
#: What becomes of the places of tokens in the sequence once some have left.
POSITIONS = {
    "original": "each keeps its own",
    "packed": "from the layer on where tokens leave, those that stay are numbered without gaps",
}


@dataclass(frozen=True)
class Pruner:
    """A selection rule: a dataclass is both its configuration and its behaviour.

    Subclasses set `name`, `site` and `needs` and override `score` (higher is kept) or `select`. Rules that merge
    override `merge`, those that act before several layers `stages` and `counts`.

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
    positions : {"original", "packed"}
        Whether tokens keep their places in the sequence, or are numbered anew without gaps.
    key_bias : float
        Kept tokens stand for dropped ones: this many times ``log(n)`` is added to what attention makes of their keys, n
        being how many tokens each stands for (`weights`). 0 is off, 1 is RESTORE's.
    coordinate_tokens : float
        Of both kinds of coordinate tokens (IVC), this fraction of N is always kept, within the budget: those whose
        position embedding has the highest mean cosine, and the highest mean sine.
    """

    keep_ratio: float = 0.5
    layer: int = 2
    num_keep: int | None = None
    budget: str = "image"
    positions: str = "original"
    key_bias: float = 0.0
    coordinate_tokens: float = 0.0

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    #: Arithmetic of a selection, in N visual tokens, M kept, T instruction tokens, H heads, D channels.
    cost: ClassVar[str] = ""
    #: One of SITES.
    site: ClassVar[str] = "decoder"
    #: Whether the rule itself finds how many tokens stay; what was asked for is the most that may.
    adaptive: ClassVar[bool] = False
    #: Whether `merge` holds for kept tokens that `select` did not choose, too (those of `coordinate_tokens`).
    merges_beside: ClassVar[bool] = False

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
        one_of("budget", self.budget, BUDGETS)
        one_of("positions", self.positions, POSITIONS)
        not_negative("key_bias", self.key_bias)
        fraction("coordinate_tokens", self.coordinate_tokens)
        if self.coordinate_tokens and type(self).merge is not Pruner.merge and not self.merges_beside:
            raise AdaptPruneError(
                f"coordinate_tokens={self.coordinate_tokens} does not go with {self.name!r}, which merges all that it "
                "drops: use 0, or a rule that only chooses."
            )
        if self.layer < self.smallest_layer:
            raise AdaptPruneError(
                f"layer={self.layer} is too early for {self.name!r}, which ranks tokens by what layer K-1 computed: "
                f"use layer={self.smallest_layer} or later, or a method that needs no cue (random, grid)."
            )

    # -- what it looks at --------------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """The cues (keys of `adaptprune.cues.CUES`) that the hooks have to capture for this rule, at all its stages."""
        return frozenset()

    def needs_at(self, layer: int, num_layers: int) -> frozenset[str]:
        """Those for the stage before one layer."""
        return self.needs

    def cues(self, layer: int, num_layers: int) -> frozenset[str]:
        """What the hooks capture for a stage: `needs_at`, and what options ask for that every rule has."""
        return self.needs_at(layer, num_layers) | (frozenset({"rotary"}) if self.coordinate_tokens else frozenset())

    @property
    def smallest_layer(self) -> int:
        """The first layer before which this rule can prune: cues of layer K-1 need K >= 1."""
        return 1 if self.needs & BELOW else 0

    # -- when, and how many ------------------------------------------------------------------------------------------

    @property
    def keeps_all(self) -> bool:
        """Whether it leaves a model untouched."""
        return self.keep_ratio == 1 and self.num_keep is None

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """The layers of a decoder before which tokens leave, ascending."""
        return (self.layer,)

    def target(self, size: int) -> int:
        """How many of `size` tokens that share a budget were asked for."""
        return budget(self.keep_ratio, size) if self.num_keep is None else min(self.num_keep, size)

    def counts(self, size: int, num_layers: int) -> dict[int, int]:
        """By stage, how many of `size` tokens that shared a budget at first are kept (at most, if it is adaptive).

        Rules with several stages keep, as a mean over all layers, what was asked for.
        """
        return {self.layer: self.target(size)}

    # -- which -------------------------------------------------------------------------------------------------------

    def score(self, tokens: VisualTokens) -> Tensor:
        """Rank of each token, (N,), higher is kept."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither score nor select")

    def select(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        """Indices of the kept tokens, (num_keep,) int64, ascending, unique.

        The default takes the highest scores; ties go to the lower index. A rule that cannot hit the budget exactly may
        keep fewer, never more.
        """
        return highest(self.score(tokens), num_keep)

    def choose(self, tokens: VisualTokens, num_keep: int) -> Tensor:
        """What is kept: `select` among what options that every rule has leave open."""
        if not self.coordinate_tokens:
            return self.select(tokens, num_keep)
        always = coordinate_tokens(tokens, self.coordinate_tokens)
        if len(always) >= num_keep:
            raise AdaptPruneError(
                f"coordinate_tokens={self.coordinate_tokens} always keeps {len(always)} of {len(tokens)} tokens, and "
                f"{num_keep} were asked for: use a smaller fraction, or keep more."
            )
        open_ = others(always, len(tokens))
        picked = self.select(tokens.subset(open_), num_keep - len(always))
        return torch.cat([always, open_[picked.to(open_.device)]]).sort().values

    # -- what they go on with ----------------------------------------------------------------------------------------

    def merge(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        """Hidden states that the kept tokens go on with, (num_keep, D); the default leaves them as they are."""
        return tokens.hidden[keep]

    def weights(self, tokens: VisualTokens, keep: Tensor) -> Tensor:
        """How many of the first tokens each kept one stands for, (num_keep,): all of them as many, by default."""
        return torch.full(keep.shape, tokens.whole / keep.numel(), device=keep.device)

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
