"""Owns the wire types of the OpenAI-compatible endpoints. Unknown fields are ignored, as OpenAI does; fields that would change
the answer and are not supported are declared here so that they can be refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, UnsetType

__all__ = [
    "AdapterCard",
    "AdapterList",
    "AdapterReference",
    "AdapterState",
    "ChatChoice",
    "ChatCompletion",
    "ChatMessage",
    "ChatRequest",
    "Choice",
    "Completion",
    "CompletionRequest",
    "ErrorBody",
    "ErrorEnvelope",
    "Logprobs",
    "ModelCard",
    "ModelList",
    "SamplingFields",
    "StreamOptions",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool = False


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of request say about choosing tokens; see OpenAI's reference. `top_k`, `min_p`, `repetition_penalty`,
    `ignore_eos`, `min_tokens` and `stop_token_ids` are extensions that vLLM has too."""

    model: str
    adapter: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Meta(ge=0, lt=2**31)]] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    # One prompt as text or token ids, or several of either; told apart by hand, since msgspec unions may hold one list type.
    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative at one position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A chosen token with its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """A message, or in a stream a part of one. What is unset is left out; no defaults, since OpenAPI could not write them."""

    role: Literal["assistant"] | UnsetType
    content: str | UnsetType
    refusal: UnsetType | None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer (`message`) or a part of one (`delta`)."""

    index: int
    message: ChatMessage | UnsetType
    delta: ChatMessage | UnsetType
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a chat request, or one chunk of its stream."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation of a prompt."""

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a completion request, or one chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str
    usage: Usage | UnsetType | None


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked. `root` is the base; `digest` and `version` are what the name means now."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    digest: str
    version: int | None = None
    aliases: list[str] = []


class ModelList(msgspec.Struct, frozen=True):
    """`GET /v1/models`."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class AdapterCard(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter: the version its bare name means now, its aliases, and which of its versions are in memory."""

    id: str
    object: Literal["adapter"] = "adapter"
    version: int
    digest: str
    method: str
    aliases: dict[str, int]
    resident: list[int]


class AdapterList(msgspec.Struct, frozen=True):
    """`GET /v1/adapters`."""

    data: list[AdapterCard]
    object: Literal["list"] = "list"


class AdapterReference(msgspec.Struct, frozen=True):
    """Which adapter to load or unload: `tenant/name`, `tenant/name@3` or `tenant/name@canary`."""

    adapter: str


class AdapterState(msgspec.Struct, frozen=True, kw_only=True):
    """What loading or unloading did; `bytes` is the memory taken, or given back."""

    id: str
    version: int
    digest: str
    resident: bool
    bytes: int


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """What every error looks like."""

    error: ErrorBody
