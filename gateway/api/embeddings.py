"""`POST /v1/embeddings`: one vector for each text, from the base with an adapter or without."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.http.trace import Trace, trace_of
from tunery.gateway.api.request.context_length import check_prompt_fits, truncate_prompt
from tunery.gateway.api.request.fields import check_fields
from tunery.gateway.api.request.prompts import PromptOptions, read_prompts
from tunery.gateway.api.request.target import resolve_target
from tunery.gateway.api.response.embeddings import Vector, format_vector
from tunery.gateway.api.schemas.requests import EmbeddingRequest
from tunery.gateway.api.schemas.responses import Embedding, EmbeddingList, EmbeddingUsage
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Embed, Ready
from tunery.gateway.resolver import Target
from tunery.registry.errors import TuneryError

__all__ = ["embeddings"]

MAX_INPUTS = 2048
"""OpenAI's limit."""


@post(
    "/v1/embeddings",
    operation_id="createEmbedding",
    summary="Embed texts with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS,
    tags=["inference"],
)
async def embeddings(
    data: JSONBody[EmbeddingRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[EmbeddingList]:
    """Embed each input: the pooled hidden states of the last layer, after the base's final norm."""
    await check_fields(request, EmbeddingRequest)
    target = resolve_target(request, data, gateway)
    ready = await gateway.wait_for_engine(request, target)
    inputs = await cancel_on_disconnect(request, lambda: _read_inputs(data, gateway, ready))
    vectors = await cancel_on_disconnect(request, lambda: _embed(data, gateway, target, inputs, trace_of(request)))
    size = sum(map(len, inputs))
    rows = [Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)]
    return Response(
        EmbeddingList(data=rows, model=data.model, usage=EmbeddingUsage(size, size)), headers=target.headers()
    )


async def _read_inputs(data: EmbeddingRequest, gateway: Gateway, ready: Ready) -> list[tuple[int, ...]]:
    """The token ids of each input, all within the context."""
    truncate, context = data.truncate_prompt_tokens, ready.context_length
    options = PromptOptions(
        param="input", max_prompts=MAX_INPUTS, special=data.add_special_tokens is not False, truncate=truncate
    )
    prompts = await read_prompts(data.input, options, gateway=gateway, ready=ready)
    inputs = [truncate_prompt(prompt, truncate, context=context) for prompt in prompts]
    for tokens in inputs:
        check_prompt_fits(len(tokens), context=context, param="input")
    return inputs


async def _embed(
    data: EmbeddingRequest, gateway: Gateway, target: Target, inputs: Sequence[tuple[int, ...]], trace: Trace
) -> list[Vector]:
    """Every input's vector. A failure of one, or the client's disconnect, cancels the others."""
    trace.adapter, trace.version = target.title, target.version.number if target.version else None
    trace.prompt_tokens = sum(map(len, inputs))
    label, pooling = gateway.metrics.label(target.label), data.pooling or "mean"

    async def embed(prompt: tuple[int, ...]) -> Vector:
        command = Embed(
            id=uuid.uuid4().hex, prompt=prompt, pooling=pooling, composition=target.composition, tenant=target.tenant
        )
        return format_vector(await _measured(gateway, command, label, trace), data)

    with gateway.hold(len(inputs), target, param="input"):
        tasks = [asyncio.create_task(embed(prompt)) for prompt in inputs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _measured(gateway: Gateway, command: Embed, label: str, trace: Trace) -> list[float]:
    """The engine's vector, counted and timed."""
    metrics, outcome = gateway.metrics, "cancelled"
    metrics.count_prompt(label, tokens=len(command.prompt))
    try:
        vector = (await gateway.engine.embed(command)).vector
        outcome = "stop"
    except TuneryError as error:
        outcome = error.code
        raise
    finally:
        metrics.count_finished(label, outcome=outcome, tokens=0, seconds=time.perf_counter() - trace.started)
    return vector
