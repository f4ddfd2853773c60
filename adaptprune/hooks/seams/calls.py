"""How the parts of a model call one another: what a layer is handed, what a decoder returns, what `generate()` does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin

from adaptprune.errors import AdaptPruneError
from adaptprune.hooks.seams.cache import parameters
from adaptprune.hooks.seams.versions import misfit

#: Arguments of a decoder layer, by meaning. The hidden states come first; the others by name, or in the order in which
#: the layer's forward names them.
HIDDEN, MASK, ROTARY, POSITIONS = "hidden_states", "attention_mask", "position_embeddings", "position_ids"
#: What sparse attention has chosen, handed on from layer to layer: places among the keys that those layers hold.
CHOSEN = "prev_topk_indices"
#: Those whose form is known.
KNOWN = frozenset({HIDDEN, MASK, ROTARY, POSITIONS})
#: What `generate()` asks for the arguments of every forward of its own.
PREPARE = "prepare_inputs_for_generation"
#: By which ERNIE's experts tell pictures from words, one per token.
EXPERTS = "moe_mm_token_type_ids"
#: Arguments of forwards and of `generate()` that hold a prompt.
IDS, EMBEDS = "input_ids", "inputs_embeds"
PROMPTS = (EMBEDS, "inputs", IDS)


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a module by their names."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(parameters(module), args, strict=False)), **kwargs}


def layer_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A decoder layer's hidden states and its other arguments by name."""
    rest = named(layer, args, kwargs) if len(args) != 1 else {HIDDEN: args[0], **kwargs}
    hidden = rest.pop(HIDDEN, None)
    if not isinstance(hidden, Tensor):
        raise misfit("the layers' hidden states", f"{type(layer).__name__} was called without {HIDDEN!r}")
    return hidden, rest


def bound(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a function by their names, those that it takes as ``**kwargs`` among them."""
    signature = inspect.signature(function)
    found = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.update(found.pop(name, {}))
    return found


class WithoutRotary(AdaptPruneError):
    """A decoder does not hand its layers position embeddings."""


def rotary(arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The position embeddings that a layer is handed, (cos, sin), tokens second: (B or 1, L, d) or (B, L, d, axes)."""
    pair = arguments.get(ROTARY)
    if not isinstance(pair, (tuple, list)) or not all(isinstance(part, Tensor) for part in pair):
        raise WithoutRotary(f"this decoder hands its layers {type(pair).__name__} in place of position embeddings")
    # before 5.18, Qwen2-VL's layers put their axes together themselves: (axes, B, L, d)
    return tuple(part.movedim(0, -1) if part.ndim == 4 else part for part in pair)


def cos_sin(arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """As `rotary`, of complex ones (Llama 4's) their parts."""
    handed = arguments.get(ROTARY)
    if isinstance(handed, Tensor) and handed.is_complex():
        return handed.real, handed.imag
    cos, sin = rotary(arguments)
    return cos, sin


def as_rotary(pair: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What `rotary` returned, as a layer takes it."""
    return tuple(part.movedim(-1, 0) if part.ndim == 4 else part for part in pair)


def prompt_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """What is read of the arguments of a forward or of `generate()`: ids (B, L) or embeddings (B, L, D)."""
    return next((inputs[name] for name in PROMPTS if isinstance(inputs.get(name), Tensor)), None)


def labelled(inputs: Mapping[str, Any]) -> bool:
    """Whether a model's arguments count in the unpruned prompt: labels, or indices of the logits to keep."""
    return inputs.get("labels") is not None or isinstance(inputs.get("logits_to_keep"), Tensor)


def logits_wanted(decoder: nn.Module, arguments: Mapping[str, Any]) -> int:
    """For how many of its last tokens a decoder is asked, if it is told so (Gemma 4's is); 0: for all, or not told."""
    name = "logits_to_keep"
    wanted = arguments.get(name) if name in parameters(decoder) else 0
    return wanted if isinstance(wanted, int) else 0


def states_of(output: Any) -> Tensor:
    """The hidden states that a decoder returned, (B, L, D)."""
    states = output if isinstance(output, Tensor) else output[0]
    if not isinstance(states, Tensor):
        raise misfit("the decoder's output", f"the first entry of a {type(output).__name__} is no tensor")
    return states


def with_states(output: Any, states: Tensor) -> Any:
    """What a decoder returned, with other hidden states in it."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


# -- generate() --------------------------------------------------------------------------------------------------------


def runs(module: nn.Module) -> bool:
    """Whether a call of a module is under way in this thread: further out on the stack."""
    return _on_stack(nn.Module._call_impl, module)


def within_generate(model: nn.Module) -> bool:
    """Whether `generate()` of a model runs further out in this thread, called in whichever way."""
    return _on_stack(inspect.unwrap(GenerationMixin.generate), model)


def _on_stack(function: Any, owner: nn.Module) -> bool:
    code, frame = function.__code__, inspect.currentframe()
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is owner:
            return True
        frame = frame.f_back
    return False


def is_stock(model: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a call of `generate()` runs transformers' own loops, and not the caller's or the model's."""
    kind: Any = type(model)
    own = inspect.unwrap(kind.generate) is inspect.unwrap(GenerationMixin.generate)
    return own and given.get("custom_generate") is None


def positions_for(model: Any, ids: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of a prompt, as `generate()` makes them: (B, L), or (axes, B, L) for models with several."""
    return _private(model, "_prepare_position_ids_for_generation")(ids, dict(inputs))


def continued(inputs: Mapping[str, Any], known: int) -> dict[str, Any]:
    """Arguments of `generate()` for a prompt of which a cache holds the first `known` tokens.

    It cuts those that are per token to the new ones itself; older releases leave out ERNIE's kinds of tokens.
    """
    return {name: value[:, known:] if name == EXPERTS else value for name, value in inputs.items()}


def ends_of(model: Any) -> frozenset[int]:
    """The tokens at which `generate()` ends an answer."""
    found = model.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, (list, tuple)) else [found])


def logits_processors(model: Any, config: Any, ids: Tensor) -> Any:
    """The processors of scores that a generation config asks for (a repetition penalty, say), as `generate()` does."""
    from transformers import LogitsProcessorList

    _private(model, "_prepare_special_tokens")(config, device=ids.device)
    return _private(model, "_get_logits_processor")(
        config, ids.shape[1], ids, None, LogitsProcessorList(), device=str(ids.device)
    )


def _private(model: Any, name: str) -> Callable[..., Any]:
    method = getattr(model, name, None)
    if not callable(method):
        raise misfit("generate()'s parts", f"{type(model).__name__} has no {name}")
    return method


def find(model: nn.Module, layers: list[nn.Module]) -> str:
    """Check what this file assumes; says how layers are called."""
    for layer in layers:
        taken = parameters(layer)
        missing = [name for name in (HIDDEN, MASK) if name not in taken]
        if missing:
            raise misfit("a layer's arguments", f"{type(layer).__name__}.forward takes no {', '.join(missing)}")
        if not {ROTARY, POSITIONS} & set(taken):
            raise misfit(
                "a layer's arguments", f"{type(layer).__name__}.forward takes neither {ROTARY} nor {POSITIONS}"
            )
    if hasattr(model, "generate") and not hasattr(model, PREPARE):
        raise misfit("generate()'s forwards", f"{type(model).__name__} has no {PREPARE}")
    return f"{HIDDEN}, {MASK}, {ROTARY}; {PREPARE}"
