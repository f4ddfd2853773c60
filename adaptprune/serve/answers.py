"""An engine's events as the OpenAI API's objects: whole answers, chunks of a stream, usage. No web framework here."""

from __future__ import annotations

import base64
import io
import json
import secrets
import time
from typing import Any

from adaptprune.engines.batch.jobs import Delta, Done, Usage


class Writer:
    """Builds the objects of one answer, which share an id and a time.

    Parameters
    ----------
    model : str
    """

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, texts: list[str], finishes: list[str | None], done: Done) -> dict[str, Any]:
        """A chat.completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_dict(done)}

    def begin(self, index: int) -> bytes:
        """The chunk that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def delta(self, event: Delta) -> bytes:
        """A chunk with text."""
        return self._chunk(event.index, {"content": event.text} if event.text else {}, event.finish)

    def usage(self, done: Done) -> bytes:
        """The last chunk of a stream whose client asked for usage."""
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_dict(done)})

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


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
        buffer = io.BytesIO()
        overlay.save(buffer, "PNG")
        found["overlay"] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return found
