"""`prune`: puts the hooks on a model and takes them off again, whatever happens in between."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import Layout, family_of
from adaptprune.hooks.layers import attention_of, check_window, key_projection
from adaptprune.hooks.narrow import layer_kwargs, take
from adaptprune.hooks.probe import install, last_token_attention
from adaptprune.hooks.state import Call, PruneState, places
from adaptprune.methods import make_pruner
from adaptprune.pruner import Pruner, VisualTokens, budget
from adaptprune.report import PruneReport, SampleReport

#: The attribute of a KV cache that holds its PruneState, so that it is copied and dropped together with the cache.
STATE = "_adaptprune_state"
#: The attribute of a decoder that holds its PruneHandle while it is pruned.
HANDLE = "_adaptprune_handle"


def prune(model: nn.Module, method: str | Pruner = "adaptprune", **options: Any) -> PruneHandle:
    """Drop visual tokens in every prompt that goes through `model`, until the handle is removed.

    Parameters
    ----------
    model : nn.Module
        A stock transformers vision-language model of a family in `adaptprune.list_families()`.
    method : str or Pruner
        A name or spec string ("adaptprune:keep_ratio=0.1,layer=2"), or an object.
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
    pruner = make_pruner(method, **options)
    if not isinstance(model, nn.Module):
        raise AdaptPruneError(f"model is a {type(model).__name__}: pass a loaded model (adaptprune.load gives one).")
    if hasattr(model, "_orig_mod"):
        raise AdaptPruneError(
            "the model is wrapped by torch.compile, which is not supported: pass the model inside it."
        )
    if getattr(model, "config", None) is None:
        raise AdaptPruneError(f"{type(model).__name__} has no config: pass a transformers model (adaptprune.load).")
    return PruneHandle(model, pruner)


class PruneHandle:
    """Hooks on one model. Made by `prune`.

    Attributes
    ----------
    report : PruneReport
        Filled anew by every prompt.
    pruner : Pruner
    """

    def __init__(self, model: nn.Module, pruner: Pruner) -> None:
        self.config: Any = model.config
        self.pruner = pruner
        self.report = PruneReport(method=pruner.spec())
        self._family = family_of(self.config)
        self._base, self._decoder = self._family.base(model), self._family.decoder(model)
        self._layers: list[nn.Module] = list(self._decoder.layers)  # type: ignore[arg-type]
        self._schedule = pruner.schedule(len(self._layers))
        self._stages = tuple(sorted(layer for layer, ratio in self._schedule.items() if ratio < 1))
        self._backend: str = self._decoder.config._attn_implementation or "eager"  # type: ignore[union-attr, assignment]
        self._calls = local()  # the forward under way, per thread
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
        for layer in self._schedule:
            if not 0 <= layer < len(self._layers):
                raise AdaptPruneError(
                    f"layer={layer} is outside the model, which has {len(self._layers)} decoder layers: "
                    f"use {self.pruner.smallest_layer} to {len(self._layers) - 1}."
                )
        if self.pruner.needs & {"keys", "raw_keys", "previous_keys"}:
            for layer in self._schedule:
                key_projection(self._layers[layer])

    def _install(self) -> None:
        def hook(module: nn.Module, before: Any = None, after: Any = None) -> None:
            if before is not None:
                self._undo.append(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if after is not None:
                # always_call: also after an exception, so that no forward's state outlives it
                self._undo.append(module.register_forward_hook(after, always_call=True).remove)

        hook(self._base, self._before_base, self._after_base)
        hook(self._decoder, self._before_decoder, self._after_decoder)
        for index in range(min(self._stages, default=len(self._layers)), len(self._layers)):
            hook(self._layers[index], partial(self._before_layer, index))
        for stage in self._stages:
            if "attention" in self.pruner.needs:
                watch = partial(self._see_attention, stage - 1)
                self._undo.append(install(attention_of(self._layers[stage - 1]), watch))
            if "previous_keys" in self.pruner.needs:
                hook(key_projection(self._layers[stage - 1]), after=partial(self._see_keys, stage - 1))
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

    def _before_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._calls.layouts = self._calls.call = None
        inputs = kwargs
        if args:
            inputs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        self._calls.layouts = self._family.layout(self.config, inputs)

    def _after_base(self, module: nn.Module, args: Any, output: Any) -> None:
        layouts, self._calls.layouts = self._calls.layouts, None
        call, self._calls.call = self._calls.call, None
        if output is None or layouts is None or not self._stages:  # an exception is on its way, or nothing to prune
            return
        if call is None or not call.rows:
            raise AdaptPruneError(
                "an image was given but no visual token was pruned: "
                + ("the decoder's hooks did not run." if call is None else "the prompt has no image placeholder.")
            )

    # -- the decoder ------------------------------------------------------------------------------------------------

    def _before_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds = kwargs.get("inputs_embeds")
        tokens: Any = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if getattr(cache, "is_compileable", False):
            raise AdaptPruneError(
                f"{type(cache).__name__} cannot be pruned, its layers have a fixed length: use a dynamic cache "
                "(cache_implementation='dynamic')."
            )
        seen = int(cache.get_seq_length()) if cache is not None else 0
        state = self._state_of(cache, seen)
        call = Call(
            state,
            past=state.settle(seen),
            length=tokens.shape[1],
            batch=tokens.shape[0],
            device=tokens.device,
            layouts=getattr(self._calls, "layouts", None),
            token_mask=mask if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            cache=cache,
        )
        for view in state.views.values():
            if view.index.shape[0] != call.batch:
                raise AdaptPruneError(
                    f"the cache was filled with a batch of {view.index.shape[0]} prompts and is continued with "
                    f"{call.batch}: continue with the same batch."
                )
        if self._stages:
            check_window(self._decoder.config, call.total)
        self._calls.call = call
        return self._continue_pruned(call, args, kwargs) if call.incoming is not None else None

    def _state_of(self, cache: Any, seen: int) -> PruneState:
        if not seen and hasattr(cache, STATE):
            delattr(cache, STATE)  # the cache was reset since
        state: PruneState | None = getattr(cache, STATE, None)
        if state is not None and state.stages != self._stages:
            raise AdaptPruneError(
                f"the cache was pruned before layers {list(state.stages)} and cannot be continued with pruning before "
                f"{list(self._stages)}: use the same layers, or a new cache."
            )
        return state or PruneState(self._stages)

    def _continue_pruned(self, call: Call, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The first layer's cache is shorter than the sequence: say so to the code that counts by it."""
        assert call.incoming is not None
        mask = kwargs.get("attention_mask")
        counted = call.token_mask is not None and call.token_mask.shape[1] == call.total
        if (isinstance(mask, Tensor) and mask.ndim == 4) or (call.length > 1 and not counted):
            # generate() takes the length of the first layer's cache for the length of the conversation
            raise AdaptPruneError(
                "a cache that was pruned with layer=0 can be continued by several tokens only in a forward with a 2-D "
                f"attention_mask over all {call.total} positions: use that, or prune with layer=1 or later."
            )
        changed = dict(kwargs)
        held = call.incoming >= 0
        if call.token_mask is not None:
            changed["attention_mask"] = call.token_mask.gather(1, call.incoming.clamp_min(0)) & held
        elif kwargs.get("attention_mask") is None and not bool(held.all()):
            changed["attention_mask"] = held.long()
        if kwargs.get("position_ids") is None:
            changed["position_ids"] = torch.arange(call.past, call.total, device=call.device)[None]
        return args, changed

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> None:
        call: Call | None = getattr(self._calls, "call", None)
        if output is None or call is None:
            self._calls.call = None
            return
        if getattr(self._calls, "layouts", None) is None:
            self._calls.call = None  # else the base's hook still looks at it
        if call.length > 1:
            self._write_report(call)

    # -- the layers -------------------------------------------------------------------------------------------------

    def _before_layer(self, index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call: Call | None = getattr(self._calls, "call", None)
        if call is None:
            return None
        if kwargs.get("past_key_values") is not None and call.cache is None:
            call.cache = kwargs["past_key_values"]  # made inside the decoder's forward
        hidden = args[0] if args else kwargs["hidden_states"]
        before = call.rows_at(index)
        if index in self._stages and any(alive.numel() for alive in call.alive):
            start = time.perf_counter()
            self._drop(call, index, hidden)
            call.selection_seconds += time.perf_counter() - start
            if call.cache is not None:
                setattr(call.cache, STATE, call.state)
        changed = layer_kwargs(call, index, kwargs, self._backend)
        rows = call.rows.get(index)
        if rows is not None:
            # rows counts incoming tokens; hidden has what earlier stages left of them
            hidden = take(hidden, rows if before is None else _relative(before, rows, call.length))
            for row, kept, states in call.merged.get(index, ()):
                hidden[row, places(rows[row : row + 1], call.length)[0, kept]] = states
        if changed is kwargs and rows is None:
            return None
        if args:
            return (hidden, *args[1:]), changed
        return args, {**changed, "hidden_states": hidden}

    def _drop(self, call: Call, stage: int, hidden: Tensor) -> None:
        """Select at one stage, for every sample and image, and note the result in `call`."""
        assert call.layouts is not None
        before = call.rows_at(stage)
        slots = places(before, call.length) if before is not None else None
        kept = []
        for row, (layout, alive) in enumerate(zip(call.layouts, call.alive, strict=True)):
            chosen = [alive[:0]]
            for image in torch.unique(layout.images):
                members = alive[layout.images[alive] == image]
                num_keep = budget(self._schedule[stage], int((layout.images == image).sum()))
                if num_keep < members.numel():
                    tokens = self._tokens(call, stage, hidden, row, layout, members, slots)
                    keep = self._checked(self.pruner.select(tokens, num_keep), len(tokens), num_keep)
                    members = members[keep]
                    if type(self.pruner).merge is not Pruner.merge:
                        states = self.pruner.merge(tokens, keep)
                        call.merged.setdefault(stage, []).append((row, layout.positions[members], states))
                chosen.append(members)
            kept.append(torch.cat(chosen))
        if sum(map(len, kept)) == sum(map(len, call.alive)):
            raise AdaptPruneError(
                f"keep_ratio={self._schedule[stage]} keeps all {sum(map(len, kept))} visual tokens of this prompt, so "
                "nothing would be pruned: use a smaller one, or run the model without pruning."
            )
        call.keep(stage, kept)

    def _checked(self, keep: Tensor, size: int, num_keep: int) -> Tensor:
        """What `select` returned, if it is what its contract says."""
        fits = keep.ndim == 1 and keep.dtype == torch.int64 and 1 <= keep.numel() <= num_keep
        if not fits or keep[0] < 0 or keep[-1] >= size or not bool((keep.diff() > 0).all()):
            raise AdaptPruneError(
                f"method {self.pruner.name!r} returned {tuple(keep.shape)} {keep.dtype} for num_keep={num_keep} "
                f"of {size} tokens: select has to return 1 to num_keep different int64 indices in ascending order."
            )
        return keep

    def _tokens(
        self, call: Call, stage: int, hidden: Tensor, row: int, layout: Layout, members: Tensor, slots: Tensor | None
    ) -> VisualTokens:
        """What the pruner sees of one image."""
        positions = layout.positions[members]
        place = positions if slots is None else slots[row, positions]
        states = hidden[row, place]
        attention = call.attention.get(stage - 1)
        if attention is not None:
            columns = places(call.columns_at(stage - 1)[row : row + 1], call.total)[0, positions + call.past]
            attention = attention[row][:, columns]
        keys = None
        if "previous_keys" in self.pruner.needs:
            keys = call.keys[stage - 1][row, place]
        elif "keys" in self.pruner.needs:
            layer: Any = self._layers[stage]
            keys = key_projection(layer)(layer.input_layernorm(states))
        elif "raw_keys" in self.pruner.needs:
            keys = key_projection(self._layers[stage])(states)
        return VisualTokens(states, layout.coords[members], attention, keys)

    # -- cues -------------------------------------------------------------------------------------------------------

    def _see_attention(
        self, layer: int, query: Tensor, key: Tensor, mask: Any, scaling: float | None, softcap: float | None
    ) -> None:
        call: Call | None = getattr(self._calls, "call", None)
        if call is not None and call.layouts is not None:
            start = time.perf_counter()
            call.attention[layer] = last_token_attention(call, layer, query, key, mask, scaling, softcap)
            call.selection_seconds += time.perf_counter() - start

    def _see_keys(self, layer: int, module: nn.Module, args: Any, output: Tensor) -> None:
        call: Call | None = getattr(self._calls, "call", None)
        if call is not None and call.layouts is not None:
            call.keys[layer] = output

    # -- the report -------------------------------------------------------------------------------------------------

    def _write_report(self, call: Call) -> None:
        samples = [SampleReport() for _ in range(call.batch)]
        for sample, layout, alive in zip(samples, call.layouts or (), call.alive, strict=False):
            sample.num_visual, sample.num_kept = layout.positions.numel(), alive.numel()
            sample.kept = (layout.positions[alive] + call.past).tolist()
            counts = [torch.bincount(part, minlength=1) for part in (layout.images, layout.images[alive])]
            sample.images = list(zip(*(count.tolist() for count in counts), strict=False)) if sample.num_visual else []
        tensors = [(layer.keys, layer.values) for layer in getattr(call.cache, "layers", ()) if layer.keys is not None]
        sizes = [keys.nbytes + values.nbytes for keys, values in tensors]
        lengths = [keys.shape[-2] for keys, _ in tensors]
        fresh = PruneReport(
            method=self.report.method,
            samples=samples,
            kv_lengths=lengths,
            kv_bytes=sum(sizes),
            kv_bytes_unpruned=sum(size * call.total // max(1, n) for size, n in zip(sizes, lengths, strict=True)),
            attention_backend=self._backend,
            selection_ms=1000 * call.selection_seconds,
            prompts=self.report.prompts + 1,
        )
        vars(self.report).update(vars(fresh))  # at once: other threads never see half of it


def _relative(before: Tensor, rows: Tensor, length: int) -> Tensor:
    """Places in `before` of the incoming tokens `rows`, (B, S); padding stays -1."""
    return torch.where(rows < 0, rows, places(before, length).gather(1, rows.clamp_min(0)))
