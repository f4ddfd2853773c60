"""Does pruning work on this model, here? Asked once of every kind of model that is not tested.

Nothing is known of such a model but its structure, so it is asked itself, with short prompts of text:

1. *With a mask.* Two prompts are padded on the left. The padding is declared visual and leaves before layer K; logits,
   of the prompt's words and of one after it, have to equal those of the stock model, which does not see it either.
2. *With a gap.* Words in the middle of a prompt are hidden by its mask, from the stock model as from the pruned one,
   where they leave before layer K: what counts places in place of positions shows here. Not asked of decoders that have
   layers with another memory than keys, in which the stock model lets words fade that it does not see.
3. *Without a mask.* Some words in front of a prompt are declared visual and leave before layer K. The stock model reads
   the prompt without them, and before layer K is handed the states that the pruned one has there: from then on both see
   the same, so that the logits of every word have to be equal. A leak that a mask would hide shows here.
4. *Causality.* Another last word must not change the logits of the words before it, unless it does so in the stock
   model.
5. *Facts.* The hooks ran, a cache was seen, and every layer holds as many keys as were left, its window counted.

Prompts are longer than a window of up to 96 positions; what a longer one hides is not tried. Nor are pictures: where
they lie is checked at every forward. What passed is remembered (`adaptprune.hooks.passed`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.families import Layout, family_of
from adaptprune.hooks import passed
from adaptprune.hooks.forwards import Forwards
from adaptprune.hooks.handle import PruneHandle
from adaptprune.hooks.seams import Parts, calls, parts
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.select import Selector
from adaptprune.hooks.state import Call
from adaptprune.methods import make_pruner

#: Words of a prompt, padding of the two rows of a batch, words that leave, and those in front of a gap.
WORDS, PADDING, JUNK, HEAD = 11, (5, 3), 5, 4
#: The longest window that prompts are made to exceed.
WINDOW = 96
#: How far logits may be apart, as a fraction of their spread (root mean square), by the dtype of the decoder. Of
#: another, and of a quantised one, it is LEAST, or thrice what padding changes in the stock model, but at most MOST.
TOLERANCES: dict[torch.dtype | None, float] = {torch.float64: 1e-5, torch.float32: 1e-4}
LEAST, NOISE, MOST = 3e-2, 3.0, 3e-1


class Failed(Exception):
    """The model did something else than it should: the message says what."""


@dataclass
class Trial:
    """What is tried: a model and the layers before which tokens leave.

    Attributes
    ----------
    found : Parts
    stages : tuple of int
    packed : bool
        Whether positions are packed behind them.
    """

    found: Parts
    stages: tuple[int, ...]
    packed: bool = False

    @cached_property
    def words(self) -> int:
        """Words of a prompt: more than short windows hold, and no more than the model can be pruned with."""
        config: Any = self.found.decoder.config
        # chunks begin at places that a prompt without some of its words has not
        layers = [] if kv.in_chunks(config) else kv.layers_of(kv.new_cache(config))
        windows = (kv.width(layer) for layer in layers)
        count = max([WORDS, *(window + 5 for window in windows if window is not None and window <= WINDOW)])
        longest = family_of(self.found.model.config).longest(self.found.model.config)
        return count if longest is None else max(HEAD + 2, min(count, longest[0] - JUNK - 1))

    @cached_property
    def tolerance(self) -> float:
        """How far logits may be apart."""
        exact = TOLERANCES.get(self.dtype)
        return exact if exact is not None else min(MOST, max(LEAST, NOISE * self.noise))

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """What the decoder computes in; None if it is quantised."""
        if getattr(self.found.model, "is_quantized", False):
            return None
        return next(self.found.decoder.parameters()).dtype

    @cached_property
    def noise(self) -> float:
        """How far the stock model's logits are apart from its own, with padding and without."""
        words = _words(self, self.words, 5)[None]
        ids = torch.cat([torch.full((1, JUNK), _filler(self), device=words.device), words], dim=1)
        mask = torch.ones_like(ids)
        mask[:, :JUNK] = 0
        model = self.found.model
        padded = model(input_ids=ids, attention_mask=mask, **_at(model, _counted(mask)), **_cache(self)).logits
        alone = model(input_ids=words, **_at(model, _counted(torch.ones_like(words))), **_cache(self)).logits
        return _apart(padded[:, -self.words :], alone)

    @contextlib.contextmanager
    def pruning(self, layouts: list[Layout], positions: str = "original") -> Iterator[list[int]]:
        """A context in which the tokens of `layouts`, one per row, leave at the first stage; gives the stages seen."""
        seen: list[int] = []

        class Leaving(Forwards):
            def _layouts(self, tokens: Tensor, mask: Tensor | None) -> list[Layout] | None:
                return layouts if tokens.shape[1] > 1 else None

        class All(Selector):
            stages = self.stages

            def drop(self, call: Call, stage: int, hidden: Tensor, arguments: dict[str, Any]) -> None:
                seen.append(stage)
                nothing = [alive[:0] for alive in call.alive]
                for each in self.stages:
                    call.keep(each, nothing)

        class Handle(PruneHandle):
            selecting, telling = All, Leaving

        with Handle(self.found.model, make_pruner("random", layer=self.stages[0], positions=positions), check=False):
            yield seen
        if not seen:
            raise Failed("no token left: the hooks did not run")


def ensure(trial: Trial) -> None:
    """Try a model unless it has passed before.

    Raises
    ------
    AdaptPruneError
        It did not pass; the message says what was found and what can be done.
    """
    key = passed.key(trial.found, trial.stages, trial.packed)
    if passed.knows(key):
        return
    try:
        with _undisturbed(trial.found.model):
            run(trial)
    except (torch.OutOfMemoryError, KeyboardInterrupt):
        raise
    except Failed as failure:
        raise _refusal(trial, str(failure)) from None
    except Exception as error:  # of the model, or ours: whatever it is, it is not pruned rightly
        said = (
            first_line(error) if isinstance(error, AdaptPruneError) else f"{type(error).__name__}: {first_line(error)}"
        )
        raise _refusal(trial, said) from error
    passed.remember(key)


def _refusal(trial: Trial, what: str) -> AdaptPruneError:
    kind = type(trial.found.model).__name__
    return AdaptPruneError(
        f"{kind} is no tested type, and did not pass the check that is made of such models: {what}. Use it unpruned, "
        "or another layer; check=False prunes it all the same, and its answers may be wrong (`adaptprune families` "
        "lists the tested types)."
    )


def run(trial: Trial) -> float:
    """All checks; the largest deviation of logits, as a fraction of their spread. Raises `Failed`."""
    found = [_padded(trial), _unmasked(trial), *([_packed(trial)] if trial.packed else [])]
    return max(found if trial.found.keyless else [*found, _gapped(trial)])


# -- the checks --------------------------------------------------------------------------------------------------------


def _padded(trial: Trial) -> float:
    first, words = PADDING[0], trial.words
    ids = torch.stack([_words(trial, first + words, seed) for seed in (0, 1)])
    mask = torch.ones_like(ids)
    for row, count in enumerate(PADDING):
        ids[row, :count] = _filler(trial)
        mask[row, :count] = 0
    leaving = [_leaving(0, count, ids.device) for count in PADDING]
    (prompt, step), (expected, after) = _both(trial, ids, mask, None, leaving)
    worst = [
        _compare(trial, prompt[row, -words:], expected[row, -words:], "a padded prompt") for row in range(len(PADDING))
    ]
    return max(*worst, _compare(trial, step, after, "the word after a padded prompt"))


def _gapped(trial: Trial) -> float:
    words, rest = _words(trial, trial.words, 2)[None], trial.words - HEAD
    ids = torch.cat([words[:, :HEAD], _words(trial, JUNK, 3)[None], words[:, HEAD:]], dim=1)
    mask = torch.ones_like(ids)
    mask[:, HEAD : HEAD + JUNK] = 0
    places = torch.arange(ids.shape[1] + 1, device=ids.device)[None]
    leaving = [_leaving(HEAD, JUNK, ids.device)]
    (prompt, step), (expected, after) = _both(trial, ids, mask, places, leaving)
    apart = _compare(trial, prompt[:, -rest:], expected[:, -rest:], "a prompt with a gap")
    return max(apart, _compare(trial, step, after, "the word after a prompt with a gap"))


def _both(
    trial: Trial, ids: Tensor, mask: Tensor, places: Tensor | None, leaving: list[Layout]
) -> list[tuple[Tensor, Tensor]]:
    """Logits of a prompt and of the word after it, pruned and of the stock model."""
    model, more = trial.found.model, torch.cat([mask, mask[:, -1:]], dim=1)

    def read() -> tuple[Tensor, Tensor]:
        cache = _cache(trial)
        at = {} if places is None else _at(model, places[:, :-1])
        next_at = _at(model, _counted(more)[:, -1:] if places is None else places[:, -1:])
        prompt = model(input_ids=ids, attention_mask=mask, **at, **cache).logits
        return prompt, model(input_ids=ids[:, -1:], attention_mask=more, **next_at, **cache).logits

    with trial.pruning(leaving):
        found = read()
    return [found, read()]


def _unmasked(trial: Trial) -> float:
    model, layer, count = trial.found.model, trial.stages[0], trial.words
    words = _words(trial, count, 2)[None]
    ids = torch.cat([_words(trial, JUNK, 3)[None], words], dim=1)
    states: list[Tensor] = []
    with (
        trial.pruning([_leaving(0, JUNK, ids.device)]),
        _before(trial, layer, lambda hidden: states.append(hidden.clone())),
    ):
        cache = _cache(trial)
        found = _two(model, ids, 0, cache)
        _check_held(kv.cache_in(cache), layer, count)
    if len(states) != 2:
        raise Failed(f"layer {layer} ran {len(states)} times in two forwards")
    for offset in (0, JUNK):
        rest = list(states)
        with _before(trial, layer, lambda hidden, rest=rest: rest.pop(0)):  # type: ignore[misc]
            expected = _two(model, words, offset, _cache(trial))
        try:
            worst = _compare(trial, found[0][:, -count:], expected[0], "a prompt without a mask")
            worst = max(worst, _compare(trial, found[1], expected[1], "the word after a prompt without a mask"))
            break
        except Failed:
            if offset:  # positions may count by themselves (scaled queries): the second time they are the same
                raise
    _check_causal(trial, ids, found[0])
    return worst


def _packed(trial: Trial) -> float:
    model, layer, count = trial.found.model, trial.stages[0], trial.words
    words = _words(trial, count, 2)[None]
    ids = torch.cat([words[:, :HEAD], _words(trial, JUNK, 3)[None], words[:, HEAD:]], dim=1)
    states: list[Tensor] = []
    with (
        trial.pruning([_leaving(HEAD, JUNK, ids.device)], "packed"),
        _before(trial, layer, lambda hidden: states.append(hidden.clone())),
    ):
        found = _two(model, ids, 0, _cache(trial))
    with _before(trial, layer, lambda hidden: states.pop(0)):
        expected = _two(model, words, 0, _cache(trial))
    apart = _compare(trial, found[0][:, -count:], expected[0], "a prompt of packed positions")
    return max(apart, _compare(trial, found[1], expected[1], "the word after a prompt of packed positions"))


def _two(model: nn.Module, ids: Tensor, offset: int, cache: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of a prompt at positions from `offset` on, and of a word after it."""
    places = torch.arange(offset, offset + ids.shape[1] + 1, device=ids.device)[None]
    prompt = model(input_ids=ids, **_at(model, places[:, :-1]), **cache).logits
    return prompt, model(input_ids=ids[:, -2:-1], **_at(model, places[:, -1:]), **cache).logits


def _check_causal(trial: Trial, ids: Tensor, logits: Tensor) -> None:
    other = ids.clone()
    other[0, -1] = ids[0, -2]
    with trial.pruning([_leaving(0, JUNK, ids.device)]):
        changed = _two(trial.found.model, other, 0, _cache(trial))[0]
    if _apart(changed[:, :-1], logits[:, :-1]) <= trial.tolerance:
        return
    stock = [_two(trial.found.model, each, 0, _cache(trial))[0][:, :-1] for each in (ids, other)]
    if _apart(*stock) <= trial.tolerance:
        raise Failed("a word is seen by the words before it")


def _check_held(cache: Any, layer: int, words: int) -> None:
    for index, each in enumerate(kv.layers_of(cache)):
        if kv.keyless(each):
            continue
        count, window = (words if index >= layer else words + JUNK) + 1, kv.width(each)
        expected = count if window is None else min(count, window - 1)
        if kv.held(each) != expected:
            raise Failed(f"layer {index} holds {kv.held(each)} keys where {expected} are left")


def _compare(trial: Trial, found: Tensor, expected: Tensor, what: str) -> float:
    if found.shape != expected.shape:
        raise Failed(f"logits of {what} have shape {tuple(found.shape)} in place of {tuple(expected.shape)}")
    apart = _apart(found, expected)
    if not apart <= trial.tolerance:
        exact = trial.dtype in TOLERANCES
        noise = "" if exact else f"; padding alone changes {trial.noise:.1e}: check it once in float32"
        raise Failed(
            f"logits of {what} differ from the stock model's by {apart:.1e} of their spread (allowed: "
            f"{trial.tolerance:.0e}{noise})"
        )
    return apart


def _apart(found: Tensor, expected: Tensor) -> float:
    """The root mean square of a difference, as a fraction of the spread of what is expected."""
    expected = expected.float()
    return float((found.float() - expected).square().mean().sqrt() / expected.std().clamp_min(1e-12))


# -- prompts -----------------------------------------------------------------------------------------------------------


def _words(trial: Trial, count: int, seed: int) -> Tensor:
    """Tokens that no config names, (count,): different ones, as long as there are enough."""
    base, config = trial.found.base, trial.found.model.config
    configs = (config, parts.text_config(config))
    named = {value for each in configs for value in vars(each).values() if type(value) is int}
    size = min(parts.num_tokens(base), 4096)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [number for number in order if number not in named] or order
    return torch.tensor((ids * (count // len(ids) + 1))[:count], device=_place(base))


def _filler(trial: Trial) -> int:
    """What padded places hold: an ordinary word, since nothing may be seen of it."""
    return int(_words(trial, 1, 4))


def _place(base: nn.Module) -> torch.device:
    weights = parts.token_embeddings(base).parameters()
    return next((each.device for each in weights if each.device.type != "meta"), torch.device("cpu"))


def _leaving(start: int, count: int, device: torch.device) -> Layout:
    places = torch.arange(start, start + count, device=device)
    return Layout(places, torch.stack([places * 0, places * 0, places], dim=1), places * 0)


def _counted(mask: Tensor) -> Tensor:
    """Positions of the words that a mask shows, (B, L)."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


def _at(model: nn.Module, places: Tensor) -> dict[str, Any]:
    """The argument that says at which positions words are, (B, L), if the model takes it."""
    return {calls.POSITIONS: places} if calls.POSITIONS in kv.parameters(model) else {}


def _cache(trial: Trial) -> dict[str, Any]:
    """The arguments that hand a forward an empty cache."""
    return {**kv.handing(trial.found.model, kv.new_cache(trial.found.decoder.config)), "use_cache": True}


@contextlib.contextmanager
def _before(trial: Trial, layer: int, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """See, or exchange, the hidden states that a layer is handed, behind all other hooks."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden, rest = calls.layer_call(module, args, kwargs)
        changed = change(hidden)
        return None if changed is None else ((changed,), rest)

    handle = trial.found.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
