"""A model to break, the calls that are made on it, and what has to come of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import adaptprune
from adaptprune import AdaptPruneError
from tests.asking import KEPT
from tests.tiny import IMAGE, batch, llava, prompt

Model = Any
Work = Callable[[Model], Any]

ONE = {"input_ids": torch.tensor([[7], [8]])}


def inputs() -> dict[str, torch.Tensor]:
    """Two prompts of other lengths, so that masks are handed on."""
    return batch(prompt(1, 9), prompt(2, 14, 3))


def layers_of(model: Model) -> Any:
    return model.model.language_model.layers


def grown() -> torch.Tensor:
    return torch.nn.functional.pad(inputs()["attention_mask"], (0, 1), value=1)


def step(model: Model, cache: Any) -> torch.Tensor:
    return model(**ONE, attention_mask=grown(), past_key_values=cache).logits


#: Calls, by name: what runs before the sabotage, and what after it with its result.
CALLS: dict[str, tuple[Work, Callable[[Model, Any], Any]]] = {
    "prompt": (lambda model: None, lambda model, _: model(**inputs()).logits),
    "own cache": (
        lambda model: DynamicCache(config=model.config.text_config),
        lambda model, cache: model(**inputs(), past_key_values=cache).logits,
    ),
    "uncached": (lambda model: None, lambda model, _: model(**inputs(), use_cache=False).logits),
    "step": (lambda model: model(**inputs()).past_key_values, step),
    "step alone": (  # without padding there is no mask that would not fit
        lambda model: model(**batch(prompt(1, 9))).past_key_values,
        lambda model, cache: model(input_ids=torch.tensor([[7]]), past_key_values=cache).logits,
    ),
    "generate": (lambda model: None, lambda model, _: model.generate(**inputs(), max_new_tokens=3)),
    "generate uncached": (
        lambda model: None,
        lambda model, _: model.generate(**inputs(), max_new_tokens=3, use_cache=False),
    ),
    "turn": (
        lambda model: model(**inputs()).past_key_values,
        lambda model, cache: model(input_ids=torch.full((2, 4), 9), past_key_values=cache).logits,
    ),
}


def fresh() -> Model:
    model = llava()
    model.generation_config.suppress_tokens = [IMAGE]
    return model


@cache
def as_it_is(call: str, spec: str, **options: Any) -> torch.Tensor:
    """What a call gives on a model that nothing was done to."""
    before, after = CALLS[call]
    model = fresh()
    with torch.no_grad(), adaptprune.prune(model, spec, keep_ratio=0.25, **options) as report:
        right = after(model, before(model))
    text = call == "turn" and "reselect" not in options
    assert report.num_kept == (0 if text else KEPT if call == "step alone" else 3 * KEPT)
    return right


def broken(
    work: Callable[..., Any],
    call: str,
    spec: str = "fastv",
    *,
    early: bool = False,
    says: str = "",
    versions: bool = True,
    **options: Any,
) -> None:
    """The call succeeds as it is, and is an AdaptPruneError once `work` was done to the model (and its cache).

    Parameters
    ----------
    work
        Takes the model, and the cache if it has two arguments. It is done before `prune()` if `early`.
    says, versions
        What the message holds; whether it names the installed transformers and the tested ones.
    """
    before, after = CALLS[call]
    right, model = as_it_is(call, spec, **options), fresh()

    def ruined() -> None:
        if early:
            work(model)
        # without the check that a changed model is made before: here, every forward has to look after itself
        with adaptprune.prune(model, spec, keep_ratio=0.25, check=False, **options):
            given = before(model)
            if not early:
                work(model, given) if work.__code__.co_argcount > 1 else work(model)
            found = after(model, given)
            pytest.fail(f"an answer came back, {'the right' if same(found, right) else 'a wrong'} one")

    with torch.no_grad(), pytest.raises(AdaptPruneError) as error:
        ruined()
    message = str(error.value)
    continued = call in ("step", "step alone", "turn")  # the layers of a pruned cache may be the first to refuse
    assert re.search(says, message) or (continued and "filled under pruning" in message), message
    if versions and not continued:
        assert version("transformers") in message, message
        assert re.search(r"tested with transformers \d+\.\d+(\.\d+)? to \d+\.\d+", message), message


def same(found: torch.Tensor, right: torch.Tensor) -> bool:
    return found.shape == right.shape and bool((found.float() - right.float()).abs().max() < 1e-4)


def unhook(module: Any, *, before: bool = True, after: bool = True) -> None:
    """Take hooks off a module that transformers did not put there."""
    for wanted, hooks in ((before, module._forward_pre_hooks), (after, module._forward_hooks)):
        for key, hook in list(hooks.items()):
            if wanted and not getattr(hook, "__module__", "").startswith("transformers."):
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def dressed(module: Any, **members: Any) -> None:
    """Give one module a class of its own: members override those of its class."""
    module.__class__ = type(f"Other{type(module).__name__}", (type(module),), members)


def renaming(old: str, new: str, kind: Any) -> dict[str, Any]:
    """Members by which a module of a kind takes the argument `old` by the name `new`, as its callers then call it."""
    signature = inspect.signature(kind.forward)
    parameters = [p.replace(name=new) if p.name == old else p for p in signature.parameters.values()]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if old in kwargs:
            kwargs[new] = kwargs.pop(old)
        return kind.__call__(self, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if new in kwargs:
            kwargs[old] = kwargs.pop(new)
        return kind.forward(self, *args, **kwargs)

    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return {"__call__": call, "forward": forward}
