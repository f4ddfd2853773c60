"""Does pruning work on this model, here? Asked once of every kind of model that has no specimen.

Nothing is known of such a model but its structure, so it is asked itself, with short prompts of text:

1. *With a mask.* Two prompts are padded on the left. The padding is declared visual and leaves before layer K; logits,
   of the prompt's words and of one after it, have to equal those of the stock model, which does not see it either.
2. *Without a mask.* Some words in front of a prompt are declared visual and leave before layer K. The stock model reads
   the prompt without them, and before layer K is handed the states that the pruned one has there: from then on both see
   the same, so that the logits of every word have to be equal. A leak that a mask would hide shows here.
3. *Causality.* Another last word must not change the logits of the words before it, unless it does so in the stock
   model.
4. *Facts.* The hooks ran, a cache was seen, and every layer holds as many keys as were left, its window counted.

It says nothing of pictures: where they lie is checked at every forward. What passed is remembered on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptprune._version import __version__
from adaptprune.errors import AdaptPruneError, first_line
from adaptprune.families import Layout
from adaptprune.hooks.forwards import Forwards
from adaptprune.hooks.handle import PruneHandle
from adaptprune.hooks.seams import Parts, attention, calls, parts
from adaptprune.hooks.seams import cache as kv
from adaptprune.hooks.seams.versions import installed
from adaptprune.hooks.select import Selector
from adaptprune.hooks.state import Call
from adaptprune.methods import make_pruner

#: Words of a prompt, padding of the two rows of a batch, and words in front that leave.
WORDS, PADDING, JUNK = 11, (5, 3), 5
#: How far logits may be apart, as a fraction of their spread, by the bits of their dtype.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
#: Where what has passed is remembered.
HOME = "ADAPTPRUNE_CACHE"


class Failed(Exception):
    """The model did something else than it should: the message says what."""


@dataclass
class Trial:
    """What is tried: a model and the layers before which tokens leave.

    Attributes
    ----------
    found : Parts
    stages : tuple of int
    """

    found: Parts
    stages: tuple[int, ...]

    @contextlib.contextmanager
    def pruning(self, layouts: list[Layout]) -> Iterator[list[int]]:
        """A context in which the tokens of `layouts`, one per row, leave at the first stage; gives the stages seen."""
        seen: list[int] = []

        class Leaving(Forwards):
            def _layouts(self, tokens: Tensor, mask: Tensor | None) -> list[Layout] | None:
                return layouts if tokens.shape[1] > 1 else None

        class All(Selector):
            stages = self.stages

            def drop(self, call: Call, stage: int, hidden: Tensor) -> None:
                seen.append(stage)
                nothing = [alive[:0] for alive in call.alive]
                for each in self.stages:
                    call.keep(each, nothing)

        class Handle(PruneHandle):
            selecting, telling = All, Leaving

        with Handle(self.found.model, make_pruner("random", layer=self.stages[0]), check=False):
            yield seen


def ensure(trial: Trial) -> None:
    """Try a model unless it has passed before.

    Raises
    ------
    AdaptPruneError
        It did not pass; the message says what was found and what can be done.
    """
    key = _key(trial)
    if key in _passed():
        return
    try:
        with _undisturbed(trial.found.model):
            run(trial)
    except Failed as failure:
        raise _refusal(trial, str(failure)) from None
    except AdaptPruneError as error:
        raise _refusal(trial, first_line(error)) from error
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise _refusal(trial, f"{type(error).__name__}: {first_line(error)}") from error
    _remember(key)


def _refusal(trial: Trial, what: str) -> AdaptPruneError:
    kind = type(trial.found.model).__name__
    return AdaptPruneError(
        f"{kind} is no tested type, and did not pass the check that is made of such models: {what}. Use it unpruned, "
        "or another layer; check=False prunes it all the same, and its answers may be wrong (`adaptprune families` "
        "lists the tested types)."
    )


def run(trial: Trial) -> float:
    """All checks; the largest deviation of a logit, as a fraction of their spread. Raises `Failed`."""
    return max(_padded(trial), _unmasked(trial))


# -- the checks --------------------------------------------------------------------------------------------------------


def _padded(trial: Trial) -> float:
    model, first = trial.found.model, PADDING[0]
    ids = torch.stack([_words(trial, first + WORDS, seed) for seed in (0, 1)])
    mask = torch.ones_like(ids)
    for row, count in enumerate(PADDING):
        ids[row, :count] = _filler(trial)
        mask[row, :count] = 0
    more = torch.cat([mask, mask[:, -1:]], dim=1)
    word = ids[:, -1:]

    def read() -> tuple[Tensor, Tensor]:
        cache = _cache(trial)
        out = model(input_ids=ids, attention_mask=mask, **cache)
        step = model(input_ids=word, attention_mask=more, **cache, **_at(model, more.sum(dim=1, keepdim=True) - 1))
        return out.logits[:, -WORDS:], step.logits

    expected = read()
    with trial.pruning([_leaving(count, ids.device) for count in PADDING]) as seen:
        found = read()
    _looked(seen)
    worst = 0.0
    for row, count in enumerate(PADDING):  # the second has more words, the first ones of which are compared as well
        words = min(WORDS, first + WORDS - count)
        worst = max(worst, _compare(found[0][row, -words:], expected[0][row, -words:], "a padded prompt"))
    return max(worst, _compare(found[1], expected[1], "the word after a padded prompt"))


def _unmasked(trial: Trial) -> float:
    model, layer = trial.found.model, trial.stages[0]
    words = _words(trial, WORDS, 2)[None]
    ids = torch.cat([_words(trial, JUNK, 3)[None], words], dim=1)
    states: list[Tensor] = []
    with (
        trial.pruning([_leaving(JUNK, ids.device)]) as seen,
        _before(trial, layer, lambda hidden: states.append(hidden.clone())),
    ):
        cache = _cache(trial)
        found = _two(model, ids, 0, cache)
        _check_held(kv.cache_in(cache), layer)
    _looked(seen)
    if len(states) != 2:
        raise Failed(f"layer {layer} ran {len(states)} times in two forwards")
    for offset in (0, JUNK):
        rest = list(states)
        with _before(trial, layer, lambda hidden, rest=rest: rest.pop(0)):  # type: ignore[misc]
            expected = _two(model, words, offset, _cache(trial))
        try:
            worst = _compare(found[0][:, -WORDS:], expected[0], "a prompt without a mask")
            worst = max(worst, _compare(found[1], expected[1], "the word after a prompt without a mask"))
            break
        except Failed:
            if offset:  # positions may count by themselves (scaled queries): the second time they are the same
                raise
    _check_causal(trial, ids, found[0])
    return worst


def _two(model: nn.Module, ids: Tensor, offset: int, cache: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of a prompt at positions from `offset` on, and of a word after it."""
    places = torch.arange(offset, offset + ids.shape[1] + 1, device=ids.device)[None]
    prompt = model(input_ids=ids, **_at(model, places[:, :-1]), **cache).logits
    return prompt, model(input_ids=ids[:, -WORDS][:, None], **_at(model, places[:, -1:]), **cache).logits


def _check_causal(trial: Trial, ids: Tensor, logits: Tensor) -> None:
    other = ids.clone()
    other[0, -1] = ids[0, -2]
    with trial.pruning([_leaving(JUNK, ids.device)]):
        changed = _two(trial.found.model, other, 0, _cache(trial))[0]
    spread = logits.float().std()
    if bool((changed[:, :-1] - logits[:, :-1]).float().abs().max() <= _allowed(logits) * spread):
        return
    stock = [_two(trial.found.model, each, 0, _cache(trial))[0][:, :-1].float() for each in (ids, other)]
    if bool((stock[0] - stock[1]).abs().max() <= _allowed(logits) * spread):
        raise Failed("a word is seen by the words before it")


def _check_held(cache: Any, layer: int) -> None:
    for index, each in enumerate(kv.layers_of(cache)):
        if kv.keyless(each):
            continue
        count, window = (WORDS if index >= layer else WORDS + JUNK) + 1, kv.width(each)
        expected = count if window is None else min(count, window - 1)
        if kv.held(each) != expected:
            raise Failed(f"layer {index} holds {kv.held(each)} keys where {expected} are left")


def _looked(seen: list[int]) -> None:
    if not seen:
        raise Failed("no token left: the hooks did not run")


def _compare(found: Tensor, expected: Tensor, what: str) -> float:
    if found.shape != expected.shape:
        raise Failed(f"logits of {what} have shape {tuple(found.shape)} in place of {tuple(expected.shape)}")
    spread = float(expected.float().std())
    apart = float((found.float() - expected.float()).abs().max()) / max(spread, 1e-12)
    if not apart <= _allowed(expected):
        raise Failed(
            f"logits of {what} differ from the stock model's by {apart:.1e} of their spread (allowed: "
            f"{_allowed(expected):.0e})"
        )
    return apart


def _allowed(logits: Tensor) -> float:
    return TOLERANCES.get(logits.dtype, 1e-1)


# -- prompts -----------------------------------------------------------------------------------------------------------


def _words(trial: Trial, count: int, seed: int) -> Tensor:
    """Different tokens, (count,), none of which a config names."""
    base, config = trial.found.base, trial.found.model.config
    configs = (config, parts.text_config(config))
    named = {value for each in configs for value in vars(each).values() if type(value) is int}
    size = parts.num_tokens(base)
    order = torch.randperm(min(size, 4096), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [number for number in order if number not in named][:count]
    return torch.tensor(ids, device=_place(base))


def _filler(trial: Trial) -> int:
    """What padded places hold: an ordinary word, since nothing may be seen of it."""
    return int(_words(trial, 1, 4))


def _place(base: nn.Module) -> torch.device:
    weights = parts.token_embeddings(base).parameters()
    return next((each.device for each in weights if each.device.type != "meta"), torch.device("cpu"))


def _leaving(count: int, device: torch.device) -> Layout:
    places = torch.arange(count, device=device)
    return Layout(places, torch.stack([torch.zeros_like(places), torch.zeros_like(places), places], dim=1), places * 0)


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


# -- what has passed ---------------------------------------------------------------------------------------------------

_known: set[str] = set()


def _key(trial: Trial) -> str:
    """What a result holds for: versions, the model's class and config, backend, dtype and layers."""
    found = trial.found
    whole: Any = found.model.config
    config = {name: value for name, value in whole.to_dict().items() if name != "_name_or_path"}
    facts = [
        __version__,
        installed(),
        torch.__version__,
        f"{type(found.model).__module__}.{type(found.model).__qualname__}",
        attention.backend(found.decoder),
        str(next(found.decoder.parameters()).dtype),
        list(trial.stages),
        json.dumps(config, sort_keys=True, default=str),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _file() -> Path:
    home = os.environ.get(HOME) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptprune"
    return Path(home) / "selfcheck.json"


def _passed() -> set[str]:
    if not _known:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(_file().read_text())
            if isinstance(found, list):
                _known.update(each for each in found if isinstance(each, str) and len(each) == 64)
    return _known


def _remember(key: str) -> None:
    _known.add(key)
    path = _file()
    with contextlib.suppress(OSError):  # no place to write: it is checked again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(sorted(_known), file)
        os.replace(file.name, path)
