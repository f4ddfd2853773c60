"""An engine's events as the OpenAI API's objects: whole answers, chunks of a stream, usage. No web framework here."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from adaptprune.engines.batch.jobs import Delta, Done, Usage
from adaptprune.images import data_url


class Writer:
    """Builds the objects of one answer, which share an id and a time.

    Parameters
    ----------
    model : str
    logprobs : bool
        Whether to list the tokens of the answer.
    """

    def __init__(self, model: str, logprobs: bool = False) -> None:
        self._logprobs = logprobs
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, deltas: list[Delta], done: Done) -> dict[str, Any]:
        """A chat.completion, from one delta with all of its text for every choice."""
        choices = [
            {
                "index": delta.index,
                "message": {"role": "assistant", "content": delta.text, "refusal": None},
                "logprobs": self._listed(delta),
                "finish_reason": delta.finish,
            }
            for delta in deltas
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_dict(done)}

    def begin(self, index: int) -> bytes:
        """The chunk that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def delta(self, event: Delta) -> bytes:
        """A chunk with text."""
        text = {"content": event.text} if event.text else {}
        return self._chunk(event.index, text, event.finish, self._listed(event))

    def usage(self, done: Done) -> bytes:
        """The last chunk of a stream whose client asked for usage."""
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_dict(done)})

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _listed(self, delta: Delta) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {**_entry(score.token, score.logprob), "top_logprobs": [_entry(*one) for one in score.top]}
            for score in delta.tokens
        ]
        return {"content": content, "refusal": None}


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; this is what the OpenAI API writes for "as good as impossible"
    return {
        "token": token.decode("utf-8", "replace"),
        "logprob": max(logprob, -9999.0),
        "bytes": list(token),
    }


def joined(pieces: list[Delta]) -> Delta:
    """The pieces of one choice as one."""
    last, tokens = pieces[-1], tuple(score for piece in pieces for score in piece.tokens)
    return Delta(last.index, "".join(piece.text for piece in pieces), last.finish, tokens)


def sse(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


END = b"data: [DONE]\n\n"


def usage_dict(done: Done) -> dict[str, Any]:
    """The API's usage object, with what pruning did and how long it took.

    `pruning` is null if the request had no image.
    """
    usage = done.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "pruning": _pruning(usage, done.overlay) if usage.images else None,
        "timing": {
            "queue_ms": round(usage.queue_ms, 3),
            "prefill_ms": round(usage.prefill_ms, 3),
            "first_token_ms": round(usage.first_token_ms, 3),
            "total_ms": round(usage.total_ms, 3),
        },
    }


def _pruning(usage: Usage, overlay: Any) -> dict[str, Any]:
    images = []
    for image in usage.images:
        entry: dict[str, Any] = {
            "visual_tokens": image.visual_tokens,
            "visual_tokens_kept": image.visual_tokens_kept,
            "grids": image.grids,
        }
        if image.kept is not None:
            entry["kept"] = image.kept
        images.append(entry)
    found = {
        "method": usage.method,
        "visual_tokens": usage.visual_tokens,
        "visual_tokens_kept": usage.visual_tokens_kept,
        "images": images,
        "selection_ms": round(usage.selection_ms, 3),
        "kv_bytes": usage.kv_bytes,
        "kv_bytes_unpruned": usage.kv_bytes_unpruned,
    }
    if overlay is not None:
        found["overlay"] = data_url(overlay)
    return found
