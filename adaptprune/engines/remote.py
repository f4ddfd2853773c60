"""The engine that asks an OpenAI-compatible server, which reads the whole conversation at every question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adaptprune.engines.client import (
    Client,
    Cost,
    Request,
    ServedModel,
    data_url,
    image_part,
    message,
    text_part,
)
from adaptprune.engines.protocol import NONE, PICTURES, Answer, Pruning, never, quiet
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.prompts import Turn
from adaptprune.registry import did_you_mean

#: What a `Request` has no place for.
NOT_SENT = ("n", "ignore_eos", "top_k", "min_p", "repetition_penalty", "logprobs", "schema")


class RemoteEngine:
    """One model of a server.

    Parameters
    ----------
    client : Client
    model : str, optional
        One of those that it serves; left out, the first.
    """

    capabilities = frozenset({PICTURES})

    def __init__(self, client: Client, model: str | None = None) -> None:
        served = {each.name: each for each in client.models()}
        if model is not None and model not in served:
            raise AdaptPruneError(f"the server has no model {model!r}.{did_you_mean(model, served)}")
        self._client = client
        self._model: ServedModel = served[model] if model else next(iter(served.values()))
        self.name = f"{self._model.name} at {client.url}"

    def check(self, pruning: Pruning) -> None:
        pruning.check()
        if pruning.method in (None, NONE):
            return
        name, known = str(pruning.method).partition(":")[0], self._model.methods
        if isinstance(pruning.method, str) and known is not None and name not in known:
            raise AdaptPruneError(f"the server has no method {name!r}.{did_you_mean(name, known)}")

    def ask(
        self,
        turns: Sequence[Turn],
        sampling: Sampling | None = None,
        pruning: Pruning | None = None,
        *,
        on_text: Callable[[str], None] = quiet,
        stopping: Callable[[], bool] = never,
    ) -> Answer:
        sampling, pruning = sampling or Sampling(), pruning or Pruning()
        sampling.leave_out(NOT_SENT, "a server is not asked for this here")
        pruning.check()
        request = self._request(turns, sampling, pruning)
        pieces: list[str] = []
        cost = Cost()
        answer = self._client.stream(request)
        try:
            for piece in answer:
                if isinstance(piece, Cost):
                    cost = piece
                    break
                pieces.append(piece)
                on_text(piece)
                if stopping():
                    return Answer("".join(pieces), "stopped")
        except KeyboardInterrupt:  # a wait for the server need not end; what has come so far stays
            return Answer("".join(pieces), "stopped")
        finally:
            answer.close()  # type: ignore[attr-defined]
        picture = cost.overlay
        return Answer(
            "".join(pieces),
            cost.finish or "stop",
            cost.prompt_tokens,
            None,
            cost.completion_tokens,
            cost.first_token_ms,
            cost.total_ms,
            cost.visual_tokens,
            cost.visual_tokens_kept,
            method=cost.method,
            draw=(lambda: picture) if picture is not None else None,
        )

    def _request(self, turns: Sequence[Turn], sampling: Sampling, pruning: Pruning) -> Request:
        pruned = pruning.method != NONE
        return Request(
            self._model.name,
            [_message(turn) for turn in turns],
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            pruning=pruning.request(),
            want_overlay=pruned and (self._model.methods is not None or pruning.method is not None),
            stop=sampling.stop,
        )

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as the API has it, its texts and pictures in their order."""
    if not turn.images and len(turn.parts) <= 1:
        return message(turn.role, turn.text)
    content = [text_part(part) if isinstance(part, str) else image_part(data_url(part)) for part in turn.parts]
    return {"role": turn.role, "content": content}
