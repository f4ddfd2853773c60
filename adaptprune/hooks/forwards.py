"""The story of one forward: what the hooks on the model, the base, the decoder and its layers do, in this order.

Their state is a `Running` per thread for what is under way, and a `PruneState` per KV cache for what was dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError
from adaptprune.families import Family, Layout
from adaptprune.hooks import encode, facts, holds, locate
from adaptprune.hooks.addons import check_added, packed
from adaptprune.hooks.narrow import layer_arguments, stream_of, take_tokens, token_dim, whole_conversation
from adaptprune.hooks.rest import evict, own_output, report_of
from adaptprune.hooks.running import Generating, Running
from adaptprune.hooks.seams import Parts, attention, calls, parts
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.select import Selector
from adaptprune.hooks.state import BELOW, STATE, Call, PruneState, places
from adaptprune.report import PruneReport


class Forwards:
    """The hooks of one pruned model.

    Parameters
    ----------
    found : Parts
    family : Family
    selector : Selector
    running : Running
    report : PruneReport
        Is filled anew by every prompt.
    reselect, evict_below : bool
        As `prune` has them.
    learned : callable or None
        The embeddings that PEFT puts in front of every prompt, (n, D).
    """

    def __init__(
        self,
        found: Parts,
        family: Family,
        selector: Selector,
        running: Running,
        report: PruneReport,
        *,
        reselect: bool,
        evict_below: bool,
        learned: Callable[[], Tensor] | None,
    ) -> None:
        self._parts, self._family, self._selector, self._running = found, family, selector, running
        self._report, self._reselect, self._evict_below, self._learned = report, reselect, evict_below, learned
        self._config: Any = found.model.config
        self._stages = selector.stages
        self._packs = selector.pruner.positions == "packed"
        self._longest = family.longest(self._config)
        self.noted = locate.Noted()
        #: Everything that was put on the model, to be looked after.
        self.held: list[holds.Hold] = []
        #: The first layer that has a hook.
        self.first = min([*self._stages, *selector.first], default=len(found.layers))
        if evict_below and self._stages:
            self.first = 0

    # -- the model around the base ----------------------------------------------------------------------------------

    def before_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running = self._running
        running.forget()
        running.full = calls.labelled(calls.named(module, args, kwargs))  # they count in the unpruned prompt
        running.own = running.generating is not None and running.generating.takes()

    def after_model(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.own = self._running.full = False

    # -- the base, which encodes the pictures -----------------------------------------------------------------------

    def before_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running = self._running
        if not calls.runs(self._parts.model):
            running.forget()
        running.call, running.encoded = None, {}
        running.inputs = calls.named(module, args, kwargs)

    def after_base(self, module: nn.Module, args: Any, output: Any) -> None:
        running = self._running
        call, running.call = running.call, None
        encoded, running.encoded = running.encoded, None
        inputs, running.inputs = running.inputs, None
        if output is not None and self._stages:  # else an exception is on its way, or nothing to prune
            facts.check_pictures(parts.shows_pictures(module, inputs or {}), bool(encoded), call)

    def _layouts(self, tokens: Tensor, mask: Tensor | None) -> list[Layout] | None:
        """The visual tokens of the forward under way, whose decoder reads `tokens`; None without pictures."""
        running, base = self._running, self._parts.base
        inputs = running.inputs
        if inputs is not None:
            ready = encode.cells_of(base, self._family, inputs.get(parts.READY), running)
            running.encoded = encoded = {**ready, **(running.encoded or {})}
            if encoded:
                return locate.layouts(base, self._family, self._config, inputs, encoded)
            tokens = inputs.get(calls.EMBEDS)  # type: ignore[assignment]
        # embeddings that may hold pictures already: a prompt, read by the base or by the decoder alone
        if tokens is None or tokens.ndim != 3 or tokens.shape[1] == 1 or not self._stages:
            return None
        return locate.merged(base, self._family, tokens, mask, self.noted, self._learned)

    # -- the decoder ------------------------------------------------------------------------------------------------

    def before_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arguments, running = calls.named(module, args, kwargs), self._running
        if not calls.runs(self._parts.base):
            running.forget()
        tokens, cache = calls.prompt_of(arguments), kv.cache_in(arguments)
        if tokens is None:
            return  # its own error says more
        masks = ((running.inputs or {}).get(calls.MASK), arguments.get(calls.MASK))
        mask = next((each for each in masks if isinstance(each, Tensor) and each.ndim == 2), None)
        if self._reselect and any(isinstance(mask, Tensor) and mask.ndim == 4 for mask in masks[:1]):
            raise AdaptPruneError("reselect=True makes its own masks: pass a 2-D attention_mask instead of a 4-D one.")
        past = kv.seen(cache)
        call = Call(
            self._state_of(cache, past),
            past=past,
            length=tokens.shape[1],
            batch=tokens.shape[0],
            device=tokens.device,
            layouts=self._layouts(tokens, mask),
            token_mask=mask,
            cache=cache,
            prompt=self._prompt(tokens, past),
            wanted=calls.logits_wanted(module, arguments),
            keyless=self._selector.keyless,
            sources=self._selector.sources,
        )
        if self._stages:
            holds.check(self.held)
            facts.check_continued(call)
            facts.check_whole(call, self._reselect or (running.mine is not None and running.mine.pictures))
            if self._evict_below:
                facts.check_draft(call)
            facts.check_decoder(module, attention.backend(module), call)
            if self._selector.pruner.key_bias or any(view.bias is not None for view in call.state.views.values()):
                check_added(attention.backend(module))
            facts.check_length(call, self._longest)
        running.call = call

    def _prompt(self, tokens: Tensor, past: int) -> int | None:
        """Positions of the prompt that the `generate()` under way was given; None if this forward is not its own."""
        mine = self._running.mine
        if mine is None or mine.prompt is None:
            return None
        if self._learned is not None and not past and mine.forwards == 1:
            mine.prompt = max(mine.prompt, tokens.shape[1])  # PEFT's embeddings stand in front of what was given
        return mine.prompt

    def _state_of(self, cache: Any, past: int) -> PruneState:
        if not past and hasattr(cache, STATE):
            delattr(cache, STATE)  # the cache was reset since
        state: PruneState | None = getattr(cache, STATE, None)
        if state is None:
            return PruneState(self._stages, packed=self._packs)
        if state.stages != self._stages:
            raise AdaptPruneError(
                f"the cache was pruned before layers {list(state.stages)} and cannot be continued with pruning before "
                f"{list(self._stages)}: use the same layers, or a new cache."
            )
        if state.packed != self._packs:
            had, has = (("original", "packed")[packed] for packed in (state.packed, self._packs))
            raise AdaptPruneError(
                f"the cache was pruned with positions={had!r} and cannot be continued with positions={has!r}: use the "
                "same ones, or a new cache."
            )
        if BELOW in state.views and not self._evict_below:
            raise AdaptPruneError(
                "the cache was evicted below the pruning layer and cannot be continued without that: use "
                "evict_below=True again, or a new cache."
            )
        if (rows := kv.moved(cache)) is not None:
            state.move(rows)
        state.settle(past)
        return state

    def after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        running = self._running
        call = running.call
        if running.inputs is None:  # else the base's hook still looks at it
            running.call = None
        if output is None or call is None:
            return None
        if self._stages:
            facts.check_forward(call, output, len(self._parts.layers) - self.first)
            facts.check_held(call, call.total)
        if call.cache is not None and (call.rows or call.state.history is not None):
            setattr(call.cache, STATE, call.state)
        if call.rows and call.cache is not None:
            if self._evict_below:
                evict(call)
            for index in range(len(self._parts.layers)):
                if call.view_at(index) is not None:
                    kv.shorten(call.cache, index, call.total)
        if call.reads_prompt:
            self._tell(call, attention.backend(module))
        if call.rows and (running.full or call.anew is not None):
            states = own_output(call, len(self._parts.layers) - 1, calls.states_of(output), running.full)
            return calls.with_states(output, states)
        if call.rows and 0 < call.wanted < calls.states_of(output).shape[1]:
            # its model cuts states of the prompt's length alone, and takes others for cut
            return calls.with_states(output, calls.states_of(output)[:, -call.wanted :])
        return None

    def _tell(self, call: Call, backend: str) -> None:
        """Fill the report; a prompt that somebody else reads inside `generate()` is counted there and not told."""
        mine, layers = self._running.mine, len(self._parts.layers)
        new = report_of(call, self._report, backend, self._family.notes, layers)
        if self._running.generating is not None and mine is None:
            self._report.prompts = new.prompts
            return
        vars(self._report).update(vars(new))  # at once: other threads never see half of it
        if mine is not None:
            mine.told = vars(new)

    def tell_again(self, outer: Generating) -> None:
        """Fill the report as `outer` had it, in which another `generate()` has ended."""
        if outer.told is not None:
            vars(self._report).update({**outer.told, "prompts": self._report.prompts})

    # -- its position embeddings ------------------------------------------------------------------------------------

    def before_rotary(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._running.call is not None:
            self._running.call.noted.begin(module, args, kwargs)

    def after_rotary(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running.call is not None and output is not None:
            self._running.call.noted.end(module, args, output)

    # -- the layers -------------------------------------------------------------------------------------------------

    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = self._running.call
        if call is None:  # called by hand, outside of its decoder; or the decoder's hook is gone
            holds.check(self.held)
            return None
        call.layers += 1
        given, arguments = calls.layer_call(module, args, kwargs)
        cache = kv.cache_in(arguments)
        if cache is not None and call.cache is None:
            call.cache = cache  # made inside the decoder's forward
        backend, hidden = attention.backend(self._parts.decoder), given
        if self._reselect and self._stages and index >= self._stages[0]:
            facts.check_alike(call, arguments)
        if self._reselect and self._stages and index == self._stages[0]:
            hidden = self._selector.remember(call, hidden, facts.remembered_rotary(arguments))
        changed = whole_conversation(call, index, arguments, backend) if call.anew is not None else arguments
        before, dim = call.rows_at(index), token_dim(call, index, hidden)
        whole = packed(call, index, changed)
        self._selector.cues.note(call, index, stream_of(hidden, dim), changed)
        if index in self._stages and any(alive.numel() for alive in call.alive):
            self._selector.drop(call, index, stream_of(hidden, dim), whole)
            whole = packed(call, index, changed)
        changed = layer_arguments(call, index, whole, backend, hidden.dtype)
        kv.expect(call.cache, index)
        rows = call.rows.get(index)
        if rows is not None:
            # rows counts incoming tokens; hidden has what earlier stages left of them
            hidden = take_tokens(hidden, rows if before is None else _relative(before, rows, call.length), dim)
            if call.merged and hidden.ndim != 3:
                raise AdaptPruneError(
                    f"{self._selector.pruner.name} merges tokens, and this model has several streams of states: use a "
                    "rule that only chooses."
                )
            for row, kept, states in call.merged.get(index, ()):
                hidden[row, places(rows[row : row + 1], call.length)[0, kept]] = states
        if changed is arguments and hidden is given:
            return None
        return (hidden,), changed


def _relative(before: Tensor, rows: Tensor, length: int) -> Tensor:
    """Places in `before` of the incoming tokens `rows`, (B, S); padding stays -1."""
    return torch.where(rows < 0, rows, places(before, length).gather(1, rows.clamp_min(0)))
