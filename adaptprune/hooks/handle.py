"""`prune`: puts the hooks on a model and takes them off again, whatever happens in between."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import family_of
from adaptprune.hooks import cache as kv
from adaptprune.hooks import encode
from adaptprune.hooks.layers import check_checkpointing, check_window
from adaptprune.hooks.narrow import layer_kwargs, take, whole_conversation
from adaptprune.hooks.rest import evict, own_output, report_of
from adaptprune.hooks.select import Selector
from adaptprune.hooks.state import BELOW, Call, PruneState, places
from adaptprune.methods import make_pruner
from adaptprune.pruner import Pruner
from adaptprune.report import PruneReport

#: The attribute of a KV cache that holds its PruneState, so that it is copied and dropped together with the cache.
STATE = "_adaptprune_state"
#: The attribute of a decoder that holds its PruneHandle while it is pruned.
HANDLE = "_adaptprune_handle"


def prune(
    model: nn.Module,
    method: str | Pruner = "adaptprune",
    *,
    reselect: bool = False,
    evict_below: bool = False,
    **options: Any,
) -> PruneHandle:
    """Drop visual tokens in every prompt that goes through `model`, until the handle is removed.

    Parameters
    ----------
    model : nn.Module
        A stock transformers vision-language model of a family in `adaptprune.list_families()`, with or without PEFT
        adapters.
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
        An unsupported model, an unknown method or option, a value that is not allowed, a model that is pruned already.

    Examples
    --------
    >>> with adaptprune.prune(model, "adaptprune", keep_ratio=0.1) as report:
    ...     model.generate(**inputs)
    >>> print(report)
    """
    for name, value in (("reselect", reselect), ("evict_below", evict_below)):
        if not isinstance(value, bool):
            raise AdaptPruneError(f"{name}={value!r} is not allowed: it is True or False.")
    pruner = make_pruner(method, **options)
    if not isinstance(model, nn.Module):
        raise AdaptPruneError(f"model is a {type(model).__name__}: pass a loaded model (adaptprune.load gives one).")
    if hasattr(model, "_orig_mod"):
        raise AdaptPruneError(
            "the model is wrapped by torch.compile, which is not supported: pass the model inside it, or compile its "
            "decoder layers."
        )
    if getattr(model, "config", None) is None:
        raise AdaptPruneError(f"{type(model).__name__} has no config: pass a transformers model (adaptprune.load).")
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()  # type: ignore[operator]
    return PruneHandle(model, pruner, reselect=reselect, evict_below=evict_below)


class PruneHandle:
    """Hooks on one model. Made by `prune`.

    Attributes
    ----------
    report : PruneReport
        Filled anew by every prompt.
    pruner : Pruner
    """

    def __init__(self, model: nn.Module, pruner: Pruner, *, reselect: bool = False, evict_below: bool = False) -> None:
        self.config: Any = model.config
        self.pruner = pruner
        self.report = PruneReport(method=pruner.spec())
        self._reselect, self._evict_below = reselect, evict_below
        self._family = family_of(self.config)
        self._model, self._base, self._decoder = model, self._family.base(model), self._family.decoder(model)
        self._layers: list[nn.Module] = list(self._decoder.layers)  # type: ignore[arg-type]
        self._backend: str = self._decoder.config._attn_implementation or "eager"  # type: ignore[union-attr, assignment]
        self._calls = local()  # the forward under way, per thread
        self._selector = Selector(pruner, self._layers, lambda: getattr(self._calls, "call", None))
        self._stages = self._selector.stages
        self._undo: list[Callable[[], None]] = []
        self._check()
        pruner.warm_up()
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _check(self) -> None:
        other = getattr(self._decoder, HANDLE, None)
        if other is not None:
            raise AdaptPruneError(
                f"this model is already pruned ({other.report.method}): leave that context or call .remove() on its "
                "handle first."
            )
        self._selector.check(self._family.smallest_layer(self.config))
        if self._reselect and self._evict_below:
            raise AdaptPruneError("reselect=True needs the keys that evict_below=True drops: use one of them.")
        if self._reselect and not self._family.causal:
            raise AdaptPruneError(
                f"reselect=True needs causal attention, and in model type {self.config.model_type!r} tokens see later "
                "ones: start a new cache at every turn instead."
            )

    def _install(self) -> None:
        def hook(module: nn.Module, before: Any = None, after: Any = None) -> None:
            # disabled: a compiled layer must not trace what depends on the prompt
            if before is not None:
                before = torch.compiler.disable(before)
                self._undo.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if after is not None:
                # always_call: also after an exception, so that no forward's state outlives it
                after = torch.compiler.disable(after)
                self._undo.append(module.register_forward_hook(after, always_call=True).remove)

        if self._model is not self._base:
            hook(self._model, self._before_model)
            self._undo += encode.note_prompts(self._model, self._calls)
        hook(self._base, self._before_base, self._after_base)
        hook(self._decoder, self._before_decoder, self._after_decoder)
        first = 0 if self._evict_below and self._stages else min(self._stages, default=len(self._layers))
        for index in range(first, len(self._layers)):
            hook(self._layers[index], partial(self._before_layer, index))
        self._undo += encode.watch(self._base, self._family, self._calls)
        self._undo += self._selector.watch()
        setattr(self._decoder, HANDLE, self)

    def remove(self) -> None:
        """Take every hook off; the model is exactly as before. Calling it again does nothing."""
        while self._undo:
            self._undo.pop()()
        if getattr(self._decoder, HANDLE, None) is self:
            delattr(self._decoder, HANDLE)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AdaptPruneError("a pruned model cannot be copied or pickled: call .remove() on its handle first.")

    def __enter__(self) -> PruneReport:
        return self.report

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # -- the model around the decoder -------------------------------------------------------------------------------

    def _before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        # both count in the unpruned prompt
        self._calls.full = kwargs.get("labels") is not None or isinstance(kwargs.get("logits_to_keep"), Tensor)

    def _before_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        inputs = kwargs
        if args:
            inputs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        self._calls.call, self._calls.encoded = None, {}
        self._calls.inputs = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "mm_encoder_outputs")}

    def _after_base(self, module: nn.Module, args: Any, output: Any) -> Any:
        call, self._calls.call = getattr(self._calls, "call", None), None
        encoded, self._calls.encoded = self._calls.encoded, None
        full, self._calls.full = getattr(self._calls, "full", False), False
        self._calls.inputs = None
        if output is None or not self._stages:  # an exception is on its way, or nothing to prune
            return None
        if encoded and (call is None or not call.rows):
            raise AdaptPruneError(
                "an image was given but no visual token was pruned: "
                + ("the decoder's hooks did not run." if call is None else "the prompt has no image placeholder.")
            )
        if call is not None and call.rows and (full or call.anew is not None):
            return own_output(call, len(self._layers) - 1, output, full)
        return None

    def _layouts(self) -> Any:
        """The visual tokens of the forward under way; None without pictures."""
        inputs = getattr(self._calls, "inputs", None)
        if inputs is None:
            return None
        given = encode.cells_of(self._base, self._family, inputs["mm_encoder_outputs"], self._calls)
        self._calls.encoded = encoded = {**given, **self._calls.encoded}
        if not encoded:
            return None
        if inputs["input_ids"] is None:
            raise AdaptPruneError(
                "pruning needs input_ids to find the visual tokens: pass them instead of inputs_embeds."
            )
        return self._family.layout(self.config, inputs["input_ids"], encoded)

    # -- the decoder ------------------------------------------------------------------------------------------------

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        embeds = kwargs.get("inputs_embeds")
        tokens: Any = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        cache = kwargs.get("past_key_values")
        masks = ((getattr(self._calls, "inputs", None) or {}).get("attention_mask"), kwargs.get("attention_mask"))
        call = Call(
            self._state_of(cache),
            past=int(cache.get_seq_length()) if cache is not None else 0,
            length=tokens.shape[1],
            batch=tokens.shape[0],
            device=tokens.device,
            layouts=self._layouts(),
            token_mask=next((mask for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2), None),
            cache=cache,
            prompt=(getattr(self._calls, "generating", None) or {}).get("prompt"),
        )
        for view in call.state.views.values():
            if view.index.shape[0] != call.batch:
                raise AdaptPruneError(
                    f"the cache was filled with a batch of {view.index.shape[0]} prompts and is continued with "
                    f"{call.batch}: continue with the same batch."
                )
        if self._stages:
            kv.check(cache)
            check_window(self._decoder.config, self._backend, call)
            check_checkpointing(module)
        if self._reselect and any(isinstance(mask, Tensor) and mask.ndim == 4 for mask in masks[:1]):
            raise AdaptPruneError("reselect=True makes its own masks: pass a 2-D attention_mask instead of a 4-D one.")
        self._calls.call = call

    def _state_of(self, cache: Any) -> PruneState:
        seen = int(cache.get_seq_length()) if cache is not None else 0
        if not seen and hasattr(cache, STATE):
            delattr(cache, STATE)  # the cache was reset since
        state: PruneState | None = getattr(cache, STATE, None)
        if state is None:
            return PruneState(self._stages)
        if state.stages != self._stages:
            raise AdaptPruneError(
                f"the cache was pruned before layers {list(state.stages)} and cannot be continued with pruning before "
                f"{list(self._stages)}: use the same layers, or a new cache."
            )
        if BELOW in state.views and not self._evict_below:
            raise AdaptPruneError(
                "the cache was evicted below the pruning layer and cannot be continued without that: use "
                "evict_below=True again, or a new cache."
            )
        state.settle(seen)
        return state

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> None:
        call: Call | None = getattr(self._calls, "call", None)
        if getattr(self._calls, "inputs", None) is None:  # else the base's hook still looks at it
            self._calls.call = None
        if output is None or call is None:
            return
        if call.cache is not None and (call.rows or call.state.history is not None):
            setattr(call.cache, STATE, call.state)
        if call.rows and call.cache is not None:
            if self._evict_below:
                evict(call, len(self._layers))
            for index in range(len(self._layers)):
                if call.view_at(index) is not None:
                    kv.shorten(call.cache, index, call.total)
        if call.reads_prompt:
            # at once: other threads never see half of it
            vars(self.report).update(vars(report_of(call, self.report, self._backend)))

    # -- the layers -------------------------------------------------------------------------------------------------

    def _before_layer(self, index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call: Call | None = getattr(self._calls, "call", None)
        if call is None:
            return None
        if kwargs.get("past_key_values") is not None and call.cache is None:
            call.cache = kwargs["past_key_values"]  # made inside the decoder's forward
        given = hidden = args[0] if args else kwargs["hidden_states"]
        if self._reselect and self._stages and index == self._stages[0]:
            hidden = self._selector.remember(call, hidden, kwargs["position_embeddings"])
        changed = whole_conversation(call, index, kwargs, self._backend) if call.anew is not None else kwargs
        before = call.rows_at(index)
        if index in self._stages and any(alive.numel() for alive in call.alive):
            self._selector.drop(call, index, hidden)
        changed = layer_kwargs(call, index, changed, self._backend)
        kv.expect(call.cache, index)
        rows = call.rows.get(index)
        if rows is not None:
            # rows counts incoming tokens; hidden has what earlier stages left of them
            hidden = take(hidden, rows if before is None else _relative(before, rows, call.length))
            for row, kept, states in call.merged.get(index, ()):
                hidden[row, places(rows[row : row + 1], call.length)[0, kept]] = states
        if changed is kwargs and hidden is given:
            return None
        if args:
            return (hidden, *args[1:]), changed
        return args, {**changed, "hidden_states": hidden}


def _relative(before: Tensor, rows: Tensor, length: int) -> Tensor:
    """Places in `before` of the incoming tokens `rows`, (B, S); padding stays -1."""
    return torch.where(rows < 0, rows, places(before, length).gather(1, rows.clamp_min(0)))
