"""Owns what clients of the inference endpoints may send. Unknown fields are ignored, as OpenAI does; fields that would change the
answer and are not supported are declared here so that they can be refused by name. Every optional field may be null, which is to leave it out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingRequest", "SamplingFields", "StreamOptions"]

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]
Tokens = str | list[Any]
"""One prompt as text or token ids, or several of either; told apart by hand, since msgspec unions may hold one list type."""


class StreamOptions(msgspec.Struct, frozen=True):
    """`stream_options`."""

    include_usage: bool | None = False


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both kinds of request say about choosing tokens; see OpenAI's reference. `top_k`, `min_p`, `repetition_penalty`,
    `ignore_eos`, `min_tokens`, `stop_token_ids`, `prompt_logprobs`, `structured_outputs` and `guided_…` are extensions that vLLM
    has too; `regex` and `grammar` are short for them."""

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
    ignore_eos: bool | None = False
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = 0
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    prompt_logprobs: Alternatives | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    grammar: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: Tokens
    logprobs: Alternatives | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/embeddings`; `pooling` and `normalize` are extensions."""

    model: str
    input: Tokens
    adapter: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    pooling: Literal["mean", "last"] | None = "mean"
    normalize: bool | None = True
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
