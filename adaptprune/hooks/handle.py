"""`prune`: puts the hooks on a model and takes them off again, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError, CannotReselect
from adaptprune.families import family_of, is_tested
from adaptprune.hooks import encode
from adaptprune.hooks.cues import REMEMBERED
from adaptprune.hooks.forwards import Forwards
from adaptprune.hooks.holds import Hold, hook, same_layers
from adaptprune.hooks.running import Running, watch_generate
from adaptprune.hooks.seams import parts, versions
from adaptprune.hooks.seams.layers import chooses
from adaptprune.hooks.seams.rotary import makers
from adaptprune.hooks.seams.table import check
from adaptprune.hooks.select import Selector
from adaptprune.methods import make_pruner
from adaptprune.pruner import Pruner
from adaptprune.report import PruneReport

#: The attribute of a decoder that holds its PruneHandle while it is pruned.
HANDLE = "_adaptprune_handle"


def prune(
    model: nn.Module,
    method: str | Pruner = "adaptprune",
    *,
    reselect: bool = False,
    evict_below: bool = False,
    check: bool = True,
    explain: bool = False,
    **options: Any,
) -> PruneHandle:
    """Drop visual tokens in every prompt that goes through `model`, until the handle is removed.

    Parameters
    ----------
    model : nn.Module
        A stock transformers vision-language model, with or without PEFT adapters: of a tested type (`adaptprune
        families` lists them), or any other that passes the check.
    method : str or Pruner
        A name or spec string ("adaptprune:keep_ratio=0.1,layer=2"), or an object.
    reselect : bool
        In a conversation over a kept cache, choose anew among all its visual tokens at every turn, so that a token
        dropped for the first question can serve the second. Costs one hidden state per token, and every turn runs the
        layers from K on over the kept conversation; the answer is that of the whole conversation in a new cache.
        Outside of `generate()`, a forward with more than one token counts as a turn.
    evict_below : bool
        Once a prompt is read, drop the keys of pruned tokens from the layers before K as well. The prompt's own pass
        sees them; what is generated does not.
    check : bool
        Whether a model of a type that is not tested has to pass a check first: some short forwards, once for every kind
        of model, attention backend, layer and version (`adaptprune.hooks.selfcheck`). Without it the report says
        "unchecked".
    explain : bool
        Whether the report is to tell how the rule ranked every token (`SampleReport.scores`), to be looked at.
    **options
        Options of the method; they win over those in `method`.

    Returns
    -------
    PruneHandle
        As a context manager it gives its `PruneReport` and takes the hooks off at the end, exceptions included;
        otherwise call `.remove()`.

    Raises
    ------
    AdaptPruneError
        A model that cannot be pruned or did not pass the check, an unknown method or option, a value that is not
        allowed, a model that is pruned already.

    Examples
    --------
    >>> with adaptprune.prune(model, "adaptprune", keep_ratio=0.1) as report:
    ...     model.generate(**inputs)
    >>> print(report)
    """
    for name, value in (("reselect", reselect), ("evict_below", evict_below), ("check", check), ("explain", explain)):
        if not isinstance(value, bool):
            raise AdaptPruneError(f"{name}={value!r} is not allowed: it is True or False.")
    pruner = make_pruner(method, **options)
    model, learned = parts.unwrapped(model)
    return PruneHandle(
        model, pruner, reselect=reselect, evict_below=evict_below, check=check, explain=explain, learned=learned
    )


def check_suits(model: nn.Module, pruner: Pruner) -> None:
    """Raise AdaptPruneError if a rule, or a layer that it names, does not suit a model. Puts nothing on it."""
    selector = Selector(pruner, parts.parts_of(model), lambda: None)
    selector.check(family_of(model.config).smallest_layer(model.config))


class PruneHandle:
    """Hooks on one model. Made by `prune`.

    Attributes
    ----------
    report : PruneReport
        Filled anew by every prompt.
    pruner : Pruner
    """

    #: What is made to choose tokens, and to follow forwards.
    selecting: ClassVar[type[Selector]] = Selector
    telling: ClassVar[type[Forwards]] = Forwards

    def __init__(
        self,
        model: nn.Module,
        pruner: Pruner,
        *,
        reselect: bool = False,
        evict_below: bool = False,
        check: bool = True,
        explain: bool = False,
        learned: Callable[[], Tensor] | None = None,
    ) -> None:
        self.config: Any = model.config
        self.pruner = pruner
        self._family = family_of(self.config)
        self._parts = parts.parts_of(model)
        running = Running()
        self._selector = self.selecting(pruner, self._parts, lambda: running.call)
        self._selector.explain = explain
        self._held: list[Hold] = []
        self._check(reselect, evict_below)
        self.report = PruneReport(method=pruner.spec(), tier=self._tier(check))
        pruner.warm_up()
        forwards = self.telling(
            self._parts, self._family, self._selector, running, self.report,
            reselect=reselect, evict_below=evict_below, learned=learned,
        )  # fmt: skip
        try:
            self._install(forwards, running)
        except BaseException:
            self.remove()
            raise

    def _check(self, reselect: bool, evict_below: bool) -> None:
        other = getattr(self._parts.decoder, HANDLE, None)
        if other is not None:
            raise AdaptPruneError(
                f"this model is already pruned ({other.report.method}): leave that context or call .remove() on its "
                "handle first."
            )
        check(self._parts, self._selector.watched)
        if chooses(self._parts.layers) and self._family.longest(self.config) is None:
            raise AdaptPruneError(
                f"model type {self.config.model_type!r} has sparse attention, and its config does not say, in a way "
                "that is known here, how many keys it chooses: it cannot be pruned."
            )
        self._selector.check(self._family.smallest_layer(self.config))
        if evict_below and chooses(self._parts.layers):
            raise AdaptPruneError(
                "evict_below=True takes keys away, and what sparse attention ranks them by would stay: leave it out."
            )
        if reselect and evict_below:
            raise AdaptPruneError("reselect=True needs the keys that evict_below=True drops: use one of them.")
        if reselect and not self._family.causal:
            raise CannotReselect(
                f"reselect=True needs causal attention, and in model type {self.config.model_type!r} tokens see later "
                "ones: start a new cache at every turn instead."
            )
        if reselect and self.pruner.positions == "packed":
            raise CannotReselect(
                "reselect=True chooses anew by the places that tokens had, which positions='packed' moves: use one of "
                "them, or start a new cache at every turn."
            )
        if reselect and (fleeting := self._selector.cues.all - REMEMBERED):
            raise CannotReselect(
                f"reselect=True remembers keys and one row of attention, and {self.pruner.name!r} looks at "
                f"{', '.join(sorted(fleeting))}: start a new cache at every turn instead."
            )
        if reselect and (self._selector.keyless or self._selector.sources):
            raise CannotReselect(
                f"reselect=True runs layers over the conversation again, and model type {self.config.model_type!r} has "
                "layers that share keys or remember in another way: start a new cache at every turn instead."
            )

    def _tier(self, check: bool) -> str:
        """How far it is proven that this model is pruned rightly: see `PruneReport.tier`."""
        if is_tested(self.config) and parts.is_stock(self._parts) and versions.is_tested():
            return "tested"
        if not check or not self._selector.stages:
            return "unchecked"
        from adaptprune.hooks import selfcheck

        trial = selfcheck.Trial(self._parts, self._selector.stages, self.pruner.positions == "packed")
        selfcheck.ensure(trial)
        return "checked"

    def _install(self, forwards: Forwards, running: Running) -> None:
        model, base, decoder, layers = self._parts.model, self._parts.base, self._parts.decoder, self._parts.layers
        held, alive = self._held, lambda: bool(held)
        # where the model is the base, what is around comes first on the way in and last on the way out
        held += hook(model, "the model", before=forwards.before_model)
        held += watch_generate(model, base, running, forwards.tell_again, alive)
        held += hook(base, "the base", forwards.before_base, forwards.after_base)
        held += hook(model, "the model", after=forwards.after_model)
        held += hook(decoder, "the decoder", forwards.before_decoder, forwards.after_decoder)
        for index in range(forwards.first, len(layers)):
            held += hook(layers[index], f"layer {index}", partial(forwards.before_layer, index))
        if self.pruner.positions == "packed":
            for maker in makers(decoder):
                held += hook(maker, "the position embeddings", forwards.before_rotary, forwards.after_rotary)
        held += encode.watch(base, self._family, running, forwards.noted, alive, self._selector.tower)
        held += self._selector.watch()
        held.append(same_layers(decoder, layers))
        forwards.held = held
        setattr(decoder, HANDLE, self)

    def remove(self) -> None:
        """Take every hook off; the model is exactly as before. Calling it again does nothing."""
        while self._held:
            self._held.pop().remove()
        if getattr(self._parts.decoder, HANDLE, None) is self:
            delattr(self._parts.decoder, HANDLE)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AdaptPruneError("a pruned model cannot be copied or pickled: call .remove() on its handle first.")

    def __enter__(self) -> PruneReport:
        return self.report

    def __exit__(self, *exception: object) -> None:
        self.remove()
