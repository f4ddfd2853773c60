"""From a validated request to what the engine takes: sampling, pruner, turns of the conversation."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.batch.jobs import Sampling
from adaptprune.engines.protocol import Pruning
from adaptprune.errors import AdaptPruneError
from adaptprune.methods import make_pruner
from adaptprune.prompts import Turn
from adaptprune.pruner import Pruner
from adaptprune.serve.errors import bad_request
from adaptprune.serve.pictures import ImageLimits
from adaptprune.serve.schemas import ChatRequest, ImagePart, Message, TextPart

#: Options of a method that are the server's to choose: a slow backend would hold up everybody.
SERVER_OPTIONS = ("backend",)
MAX_TEXT = 400_000  # characters of all messages


def sampling(ask: ChatRequest) -> Sampling:
    """How the answer is chosen."""
    if ask.stream_options is not None and not ask.stream:
        raise bad_request("stream_options is allowed only together with stream=true.", "stream_options")
    stop = [ask.stop] if isinstance(ask.stop, str) else ask.stop or []
    return Sampling(
        ask.limit, ask.temperature, ask.top_p, ask.seed, tuple(stop), ask.n or 1, ignore_eos=bool(ask.ignore_eos)
    )


def pruner(ask: ChatRequest, engine: Engine) -> Pruner | None:
    """The pruner of a request: the server's default, changed or replaced."""
    if ask.pruning is None:
        return engine.pruner
    options = dict(ask.pruning.__pydantic_extra__ or {})
    method = ask.pruning.method
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


def check(ask: ChatRequest, limits: ImageLimits) -> None:
    """Refuse what is cheap to see before any image is touched."""
    count = len(image_urls(ask))
    if count > limits.max_images:
        raise bad_request(f"the request has {count} images, more than the {limits.max_images} allowed.", "messages")
    for place, message in enumerate(ask.messages):
        if message.role != "user" and any(isinstance(part, ImagePart) for part in _parts(message)):
            raise bad_request(f"messages[{place}] has an image, but only users show images.", f"messages[{place}]")
    if ask.messages[-1].role != "user":
        raise bad_request("the last message has to be the user's: there is nothing to answer.", "messages")
    text = sum(len(part.text) for message in ask.messages for part in _parts(message) if isinstance(part, TextPart))
    if text > MAX_TEXT:
        problem = f"the messages have {text:,} characters, more than the {MAX_TEXT:,} that are allowed."
        raise bad_request(problem, "messages", "context_length_exceeded")


def image_urls(ask: ChatRequest) -> list[tuple[str, str]]:
    """The address of every image in its order, and where it stands in the request."""
    return [
        (part.image_url.url, f"messages[{place}].content[{number}].image_url")
        for place, message in enumerate(ask.messages)
        for number, part in enumerate(_parts(message))
        if isinstance(part, ImagePart)
    ]


def turns(ask: ChatRequest, images: Sequence[Image.Image]) -> list[Turn]:
    """The conversation, with `images` in the places of its image parts."""
    left = iter(images)
    return [
        Turn(
            "system" if message.role == "developer" else message.role,
            [part.text if isinstance(part, TextPart) else next(left) for part in _parts(message)],
        )
        for message in ask.messages
    ]


def _parts(message: Message) -> Sequence[TextPart | ImagePart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content
