"""`POST /v1/embeddings`: what the base, with an adapter or without, makes of a text, as one vector."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.http.trace import Trace, trace_of
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.request.prompts import read_prompts
from tunery.gateway.api.request.sampling import check_context, truncated
from tunery.gateway.api.response.sending import await_engine, or_disconnect
from tunery.gateway.api.schemas.requests import EmbeddingRequest
from tunery.gateway.api.schemas.responses import Embedding, EmbeddingList, EmbeddingUsage
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Embed, Ready
from tunery.gateway.resolver import Target
from tunery.registry.errors import InvalidInput, TuneryError

__all__ = ["embeddings"]

MAX_INPUTS = 2048
"""OpenAI's."""

Vector = list[float] | str
"""As numbers, or as the base64 of little-endian float32."""


@post(
    "/v1/embeddings",
    operation_id="createEmbedding",
    summary="The vectors of texts, by the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS,
    tags=["inference"],
)
async def embeddings(
    data: JSONBody[EmbeddingRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[EmbeddingList]:
    """The pooled hidden states of each input, after the base's last norm."""
    await check_fields(request, EmbeddingRequest)
    trace = trace_of(request)
    target = gateway.resolver.resolve(data.model, adapter=data.adapter or request.headers.get("x-tunery-adapter"))
    trace.model = data.model
    ready = await await_engine(request, gateway, target)
    inputs = await or_disconnect(request, lambda: _inputs(data, gateway, ready))
    for prompt in inputs:
        check_context(len(prompt), context=ready.context_length, param="input")
    vectors = await or_disconnect(request, lambda: _vectors(data, gateway, target, inputs, trace))
    size = sum(map(len, inputs))
    shown = [Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)]
    answer = EmbeddingList(data=shown, model=data.model, usage=EmbeddingUsage(size, size))
    return Response(answer, headers=target.headers())


async def _inputs(data: EmbeddingRequest, gateway: Gateway, ready: Ready) -> list[tuple[int, ...]]:
    special, truncate = data.add_special_tokens is not False, data.truncate_prompt_tokens
    read = await read_prompts(data.input, gateway, param="input", most=MAX_INPUTS, special=special, truncate=truncate)
    return [truncated(prompt, truncate, context=ready.context_length) for prompt in read]


async def _vectors(
    data: EmbeddingRequest, gateway: Gateway, target: Target, inputs: Sequence[tuple[int, ...]], trace: Trace
) -> list[Vector]:
    """Every input's vector; one that fails, or the client's leaving, ends them all."""
    label = gateway.metrics.label(target.label)
    trace.adapter, trace.version = target.title, target.version.number if target.version else None
    trace.prompt_tokens = sum(map(len, inputs))
    ask = [
        Embed(
            id=uuid.uuid4().hex,
            prompt=prompt,
            pooling=data.pooling or "mean",
            composition=target.composition,
            tenant=target.tenant,
        )
        for prompt in inputs
    ]
    with gateway.hold(len(ask), target, param="input"):
        return await _all(gateway, ask, label, trace, lambda vector: _written(vector, data))


async def _all(
    gateway: Gateway, ask: Sequence[Embed], label: str, trace: Trace, write: Callable[[list[float]], Vector]
) -> list[Vector]:
    async def one(embed: Embed) -> Vector:
        return write(await _one(gateway, embed, label, trace))

    tasks = [asyncio.create_task(one(embed)) for embed in ask]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(gateway: Gateway, embed: Embed, label: str, trace: Trace) -> list[float]:
    """One vector, counted and timed."""
    metrics, outcome = gateway.metrics, "cancelled"
    metrics.prompt(label, tokens=len(embed.prompt))
    try:
        vector = (await gateway.engine.embed(embed)).vector
        outcome = "stop"
    except TuneryError as error:
        outcome = error.code
        raise
    finally:
        metrics.finished(label, outcome=outcome, tokens=0, seconds=time.perf_counter() - trace.started)
    return vector


def _written(vector: list[float], data: EmbeddingRequest) -> Vector:
    """A vector as it is answered: its first `dimensions`, of length 1 unless `normalize` is false."""
    size = data.dimensions or len(vector)
    if size > len(vector):
        raise InvalidInput(
            f"dimensions is {str(size)[:20]} and this model's vectors have {len(vector)}; ask for as many at most",
            param="dimensions",
        )
    vector = vector[:size]
    if data.normalize is not False and (norm := math.hypot(*vector)) > 0:
        vector = [value / norm for value in vector]
    if data.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector
