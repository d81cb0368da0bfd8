"""The response bodies of the inference endpoints, and the body of every error."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "CachedTokens",
    "ChatChoice",
    "ChatCompletion",
    "ChatMessage",
    "Choice",
    "Completion",
    "Embedding",
    "EmbeddingList",
    "EmbeddingUsage",
    "ErrorBody",
    "ErrorEnvelope",
    "FunctionCall",
    "Logprobs",
    "PromptLogprob",
    "PromptLogprobs",
    "TokenLogprob",
    "ToolCall",
    "TopLogprob",
    "Usage",
]


class CachedTokens(msgspec.Struct, frozen=True):
    """How many prompt tokens came from the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """The tokens of a request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PromptLogprob(msgspec.Struct, frozen=True):
    """The token at one position of the prompt, or an alternative to it."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's `prompt_logprobs`: the candidates at each position of the prompt by token id; None for the first position."""


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


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """The called function, and its arguments as the text of a JSON object."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call, or in a stream a part of the call with that `index`."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCall


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message, or in a stream a part of one. Unset fields are left out."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: UnsetType | None = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One choice: a whole `message`, or in a stream a `delta`."""

    index: int
    message: ChatMessage | UnsetType = UNSET
    delta: ChatMessage | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a chat request, or one chunk of its stream."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation of a prompt."""

    index: int
    text: str
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The response to a completion request, or one chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """One vector, as numbers or as the base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """The tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The response to an embedding request, in the order of its inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: ErrorBody
