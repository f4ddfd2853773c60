"""What clients may send: the OpenAI chat API's parameters that this server carries out, and pruning.

A parameter that would change the answer and is not carried out is refused, never ignored: it stands in a class
`_NotCarriedOut` with the only values that mean "not used". What changes nothing about the answer is accepted, because
clients send it out of habit. null means "not given" everywhere, as in the OpenAI API. See `parsing` for errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Option = Annotated[
    bool
    | Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | Annotated[str, Field(max_length=200)],
    Field(union_mode="smart"),
]
NoList = Annotated[list[Any], Field(max_length=0)]
NoMap = Annotated[dict[str, Any], Field(max_length=0)]
#: Options of a pruning method in one request; no method has nearly as many.
MAX_OPTIONS = 64
MAX_KEY = 80


class _Part(BaseModel):
    """Takes known keys only, and stops at the first unknown one: there may be very many."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = set(cls._keys())
        unknown = next((key for key in data if key not in known), None)
        if unknown is not None:
            raise PydanticCustomError("extra_key", "unknown", {"key": unknown, "allowed": cls.supported()})
        return {key: value for key, value in data.items() if value is not None}

    @classmethod
    def supported(cls) -> list[str]:
        """Names of the keys that are carried out."""
        others = keys_from(cls, _NotCarriedOut) | keys_from(cls, _Labels)
        return [name for name in cls._keys() if name not in others]

    @classmethod
    def _keys(cls) -> list[str]:
        return [field.alias or name for name, field in cls.model_fields.items()]


class _NotCarriedOut(_Part):
    """Keys of which only the values that mean "not used" are allowed."""


class _Labels(_Part):
    """Keys that change nothing about the answer."""


def keys_from(kind: type[BaseModel], marker: type[BaseModel]) -> set[str]:
    """Names of the keys that `kind` has from the classes marked by `marker`."""
    return {name for base in kind.__mro__ if marker in base.__bases__ for name in base.__annotations__}


def not_carried_out(kind: type[BaseModel]) -> set[str]:
    """Names of the keys of `kind` that are refused by name."""
    return keys_from(kind, _NotCarriedOut)


# -- messages ---------------------------------------------------------------------------------------------------------


class _Labelled(_Labels):
    """What clients attach to a message or its parts; it changes nothing about the answer."""

    cache_control: Any = Field(None, description="No effect.")
    id: Any = Field(None, description="No effect.")
    index: Any = Field(None, description="No effect.")
    annotations: Any = Field(None, description="No effect.")


class TextPart(_Labelled):
    type: Literal["text", "input_text", "output_text"]
    text: str


class ImageUrl(_Part):
    """`detail` has no effect: the model's own processor decides at which size an image is read."""

    url: str = Field(description="A data URL (data:image/png;base64,...), or http(s) if the server allows its host.")
    detail: Annotated[str, Field(max_length=200)] | None = Field(None, description="No effect.")
    format: Annotated[str, Field(max_length=200)] | None = Field(None, description="No effect.")


class ImagePart(_Labelled):
    type: Literal["image_url", "input_image"]
    image_url: ImageUrl
    detail: Annotated[str, Field(max_length=200)] | None = Field(None, description="No effect.")

    @model_validator(mode="before")
    @classmethod
    def _as_object(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("image_url"), str):
            return {**data, "image_url": {"url": data["image_url"]}}
        return data


Content = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=256, fail_fast=True)
]


class _PastAnswer(_NotCarriedOut):
    audio: None = None
    function_call: None = None
    images: NoList | None = None
    refusal: Annotated[str, Field(max_length=0)] | None = None
    tool_calls: NoList | None = None


class _MessageLabels(_Labels):
    name: str | None = Field(None, description="No effect: chat templates have no place for it.")
    prefix: bool | None = Field(None, description="No effect: an assistant's message at the end is always continued.")
    provider_specific_fields: Any = Field(None, description="No effect.")
    reasoning: Any = Field(None, description="No effect: earlier reasoning is not shown to the model.")
    reasoning_content: Any = Field(None, description="No effect.")
    reasoning_details: Any = Field(None, description="No effect.")
    thinking_blocks: Any = Field(None, description="No effect.")
    tool_call_id: Any = Field(None, description="No effect.")


class Message(_Labelled, _MessageLabels, _PastAnswer):
    """A turn of the conversation. Images may stand in a user's turn only; an assistant's may have no content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Content | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.role != "assistant":
            if self.content is None:
                raise PydanticCustomError("no_content", "missing")
            if not isinstance(self.content, str) and not self.content:
                raise PydanticCustomError("no_parts", "has no parts")
        return self


# -- options ----------------------------------------------------------------------------------------------------------


class _StreamRefused(_NotCarriedOut):
    continuous_usage_stats: Literal[False] | None = None


class StreamOptions(_StreamRefused):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="No effect: chunks are not padded.")


class JsonSchema(_Part):
    """`name`, `description` and `strict` have no effect: a schema is always kept to."""

    name: Annotated[str, Field(max_length=200)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """The answer's form: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


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

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_OPTIONS:
            message = "a method has fewer than {most} options"
            raise PydanticCustomError("too_many", message, {"most": MAX_OPTIONS})
        long = next((key for key in data if len(key) > MAX_KEY), None)
        if long is not None:
            allowed = [*cls.model_fields, "the method's options"]
            raise PydanticCustomError("extra_key", "unknown", {"key": long, "allowed": allowed})
        return {key: value for key, value in data.items() if value is not None}


class _RequestLabels(_Labels):
    """Labels, and what changes nothing about one request's answer."""

    metadata: dict[str, Any] | None = Field(None, description="No effect.")
    parallel_tool_calls: bool | None = Field(None, description="No effect: there are no tools.")
    prompt_cache_key: str | None = Field(None, description="No effect.")
    prompt_cache_retention: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    user: str | None = Field(None, description="No effect.")


class _RequestRefused(_NotCarriedOut):
    audio: None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    function_call: Literal["none", "auto"] | None = None
    functions: list[Any] | None = None
    include_reasoning: Literal[False] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    length_penalty: Literal[1] | None = None
    logit_bias: NoMap | None = None
    min_tokens: Literal[0] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    prediction: None = None
    presence_penalty: Literal[0] | None = None
    reasoning_effort: Literal["none"] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    stop_token_ids: NoList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: list[Any] | None = None
    use_beam_search: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


class ChatRequest(_RequestLabels, _RequestRefused):
    """A request to /v1/chat/completions."""

    model: Annotated[str, Field(max_length=500)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000, fail_fast=True)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | Literal[-1] | None = Field(None, description="-1: not limited.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4, fail_fast=True)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy. Default: what the checkpoint's generation_config.json says (greedy if nothing)."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = Field(None, description="0 and -1: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="1 is none; counts the prompt, too."
    )
    logprobs: bool | None = Field(None, description="List every token with its log probability before sampling.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    pruning: Pruning | None = None
    ignore_eos: bool | None = Field(None, description="Write on to max_tokens; for load tests.")
    timeout: Annotated[float, Field(gt=0)] | None = Field(None, description="Seconds; at most the server's own limit.")
    continue_final_message: bool | None = Field(None, description="True only if the last message is an assistant's.")
    add_generation_prompt: bool | None = Field(None, description="True only if the last message is the user's.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Accepted as long as the model's chat template reads none of them."
    )

    @property
    def limit(self) -> int | None:
        """The most new tokens, under its new or its old name."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return None if limit == -1 else limit
