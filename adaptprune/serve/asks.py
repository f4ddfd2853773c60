"""From a validated request to what the engine takes: sampling, pruner, turns of the conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from PIL import Image

from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.protocol import Pruning
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from adaptprune.pruner import Pruner
from adaptprune.serve.errors import bad_request
from adaptprune.serve.parsing import not_supported
from adaptprune.serve.pictures import ImageLimits
from adaptprune.serve.schemas import ChatRequest, ImagePart, Message, TextPart

#: Options of a method that are the server's to choose: a slow backend would hold up everybody.
SERVER_OPTIONS = ("backend",)
MAX_TEXT = 400_000  # characters of all messages


def sampling(ask: ChatRequest) -> Sampling:
    """How the answer is chosen."""
    if ask.stream_options is not None and not ask.stream:
        raise bad_request("stream_options is allowed only together with stream=true.", "stream_options")
    if ask.top_logprobs and not ask.logprobs:
        raise bad_request("top_logprobs is allowed only together with logprobs=true.", "top_logprobs")
    stop = [ask.stop] if isinstance(ask.stop, str) else ask.stop or []
    return Sampling(
        ask.limit, ask.temperature, ask.top_p, ask.seed, tuple(stop), ask.n or 1,
        ignore_eos=bool(ask.ignore_eos),
        top_k=None if ask.top_k is None else max(0, ask.top_k),
        min_p=ask.min_p,
        repetition_penalty=ask.repetition_penalty,
        logprobs=ask.top_logprobs or 0 if ask.logprobs else None,
        schema=_schema(ask),
    )  # fmt: skip


def _schema(ask: ChatRequest) -> str | None:
    """The JSON schema that the answer has to fit; None: any text."""
    wanted = ask.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        place = "response_format.json_schema.schema"
        raise bad_request(f"{place} is missing.", place, "missing_required_parameter")
    return json.dumps(wanted.json_schema.schema_)


def pruner(ask: ChatRequest, engine: Engine) -> Pruner | None:
    """The pruner of a request: the server's default, changed or replaced."""
    if ask.pruning is None:
        return engine.pruner
    options = dict(ask.pruning.__pydantic_extra__ or {})
    method = ask.pruning.method
    if method is None and not options:  # what is asked for is a picture, say
        return engine.pruner
    if method == "none":
        if options:
            raise bad_request('method "none" has no options.', "pruning", "bad_pruning_options")
        return None
    try:
        found = make_pruner(method or engine.pruner or "adaptprune", **options)
        for name in SERVER_OPTIONS:
            if getattr(found, name, None) != getattr(type(found), name, None):
                raise AdaptPruneError(f"option {name!r} is the server's to choose: leave it out.")
        engine.check(Pruning(found))
    except (AdaptPruneError, TypeError) as error:
        raise bad_request(str(error), "pruning", "bad_pruning_options") from None
    return found


def check(ask: ChatRequest, limits: ImageLimits, engine: Engine) -> None:
    """Refuse what is cheap to see before any image is touched."""
    if ask.tools and ask.tool_choice != "none":
        raise not_supported("tools")
    if ask.functions and ask.function_call != "none":
        raise not_supported("functions")
    template = engine.prompter.template
    for name in ask.chat_template_kwargs or {}:
        if re.search(rf"\b{re.escape(name[:200])}\b", template):
            problem = f"chat_template_kwargs: {name[:80]!r} would change the model's prompt, which is not supported."
            raise bad_request(problem, "chat_template_kwargs", "unsupported_parameter")
    count = len(image_urls(ask))
    if count > limits.max_images:
        raise bad_request(f"the request has {count} images, more than the {limits.max_images} allowed.", "messages")
    for place, message in enumerate(ask.messages):
        if message.role != "user" and any(isinstance(part, ImagePart) for part in _parts(message)):
            raise bad_request(f"messages[{place}] has an image, but only users show images.", f"messages[{place}]")
    _check_end(ask)
    text = sum(len(part.text) for message in ask.messages for part in _parts(message) if isinstance(part, TextPart))
    if text > MAX_TEXT:
        problem = f"the messages have {text:,} characters, more than the {MAX_TEXT:,} that are allowed."
        raise bad_request(problem, "messages", "context_length_exceeded")


def _check_end(ask: ChatRequest) -> None:
    """An assistant's message at the end is continued, a user's is answered; nothing else is carried out."""
    role = ask.messages[-1].role
    if role not in ("user", "assistant"):
        raise bad_request("the last message has to be the user's, or an assistant's to be continued.", "messages")
    going_on = role == "assistant"
    for name, expected in (("continue_final_message", going_on), ("add_generation_prompt", not going_on)):
        given = getattr(ask, name)
        if given is not None and given != expected:
            rule = "an assistant's message at the end is continued, a user's is answered"
            raise bad_request(f"{name}={str(given).lower()} does not fit the last message: {rule}.", name)


def image_urls(ask: ChatRequest) -> list[tuple[str, str]]:
    """The address of every image in its order, and where it stands in the request."""
    return [
        (part.image_url.url, f"messages[{place}].content[{number}].image_url")
        for place, message in enumerate(ask.messages)
        for number, part in enumerate(_parts(message))
        if isinstance(part, ImagePart)
    ]


def turns(ask: ChatRequest, images: Sequence[Image.Image]) -> list[Turn]:
    """The conversation, with `images` in the places of its image parts; an empty beginning of an answer is none."""
    left = iter(images)
    found = [
        Turn(
            "system" if message.role == "developer" else message.role,
            [part.text if isinstance(part, TextPart) else next(left) for part in _parts(message)],
        )
        for message in ask.messages
    ]
    if found[-1].role == "assistant" and not any(found[-1].parts):
        found.pop()
    return found


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    if isinstance(message.content, list):
        return message.content
    return [TextPart.model_construct(type="text", text=message.content or "")]
