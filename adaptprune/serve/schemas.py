"""What clients may send and what they get: the OpenAI chat API's parameters that this server carries out, and pruning.

A parameter that would change the answer and is not carried out is refused, never ignored: it is in the schema with the
only value that means "not used". null means "not given" everywhere, as in the OpenAI API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adaptprune.registry import did_you_mean
from adaptprune.serve.errors import ServeError, bad_request

Option = Annotated[
    bool
    | Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | Annotated[str, Field(max_length=200)],
    Field(union_mode="smart"),
]
NoList = Annotated[list[Any], Field(max_length=0)]
NoMap = Annotated[dict[str, Any], Field(max_length=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """`detail` has no effect: the model's own processor decides at which size an image is read."""

    url: str = Field(description="A data URL (data:image/png;base64,...), or http(s) if the server allows its host.")
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Part):
    """A turn of the conversation. Images may stand in a user's turn only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        str
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, max_length=256)
        ]
    )
    tool_calls: NoList | None = None
    annotations: NoList | None = None


class StreamOptions(_Part):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(_Part):
    type: Literal["text"]


class Pruning(BaseModel):
    """Which visual tokens are kept. Further keys are the method's options (`adaptprune methods`): keep_ratio, layer...

    Without `method`, the server's default with these options changed.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Option]

    method: Annotated[str, Field(max_length=500)] | None = Field(
        None, description='A name or spec string ("adaptprune:keep_ratio=0.1"); "none" runs the model unpruned.'
    )
    return_kept: bool = Field(False, description="List grid, row and column of every kept token in usage.pruning.")
    return_overlay: bool = Field(False, description="Add the picture with dropped patches dimmed, as a PNG data URL.")


class ChatRequest(_Part):
    """A request to /v1/chat/completions."""

    model: Annotated[str, Field(max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy. Default: what the checkpoint's generation_config.json says (greedy if nothing)."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    pruning: Pruning | None = None
    ignore_eos: bool | None = Field(None, description="Write on to max_tokens; for load tests.")
    timeout: Annotated[float, Field(gt=0)] | None = Field(None, description="Seconds; at most the server's own limit.")
    # labels that change nothing about the answer
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    # not carried out: only the values that mean "not used" are allowed
    audio: None = None
    frequency_penalty: Literal[0] | None = None
    function_call: Literal["none"] | None = None
    functions: NoList | None = None
    logit_bias: NoMap | None = None
    logprobs: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    parallel_tool_calls: bool | None = None
    prediction: None = None
    presence_penalty: Literal[0] | None = None
    reasoning_effort: None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: NoList | None = None
    top_logprobs: Literal[0] | None = None
    verbosity: None = None
    web_search_options: None = None

    @property
    def limit(self) -> int | None:
        """The most new tokens, under its new or its old name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


#: Parameters of the OpenAI API that this server does not carry out.
UNSUPPORTED = frozenset(
    name for name in list(ChatRequest.model_fields)[list(ChatRequest.model_fields).index("audio") :]
) | {"tool_calls", "annotations", "include_obfuscation"}  # fmt: skip


def parse(body: bytes) -> ChatRequest:
    """A request from its JSON.

    Raises
    ------
    ServeError
        400 that names the part at fault.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> ServeError:
    """The first problem, in words; of the alternatives at its place, the one that came furthest."""
    problems = error.errors(include_url=False, include_context=False)
    problem = max(
        (one for one in problems if one["loc"][:3] == problems[0]["loc"][:3]), key=lambda one: len(one["loc"])
    )
    place, value = problem["loc"], problem["input"]
    param = _path(place)
    name = place[-1] if place else ""
    if problem["type"] == "json_invalid":
        return bad_request(f"the body is not valid JSON: {problem['msg']}.", None, "invalid_json")
    if not place:
        return bad_request("the body is not a JSON object.", None, "invalid_type")
    if problem["type"] == "missing":
        return bad_request(f"{param} is missing.", param, "missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(name), ChatRequest.model_fields) if len(place) == 1 else ""
        return bad_request(f"unknown parameter {param!r}.{hint}", param, "unknown_parameter")
    unsupported = next((str(part) for part in place if part in UNSUPPORTED), None)
    if unsupported is not None:
        message = f"{unsupported} is not supported by this server: leave it out."
        return bad_request(message, unsupported, "unsupported_parameter")
    if problem["type"] == "union_tag_invalid":
        message = f"{param}: only parts of type 'text' and 'image_url' are supported."
        return bad_request(message, param, "unsupported_parameter")
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return bad_request(f"{param}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {shown}.", param)


def _path(place: tuple[int | str, ...]) -> str:
    """The place of a problem as messages[0].content[1].text; names of alternatives in it are pydantic's, not ours."""
    path = ""
    for before, part in zip((None, *place), place, strict=False):
        if isinstance(part, int):
            path += f"[{part}]"
        elif isinstance(before, int) and part in ("text", "image_url"):
            continue  # the alternative that a part's type chose
        elif part.replace("_", "").isalnum() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path or ".".join(map(str, place))
