"""`POST /v1/embeddings`: one vector for each text, from the base with an adapter or without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from tunery.gateway.api.http.connection import cancel_on_disconnect
from tunery.gateway.api.http.errors import ERRORS
from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.request.call import Call, call_of
from tunery.gateway.api.request.context_length import check_prompt_fits, truncate_prompt
from tunery.gateway.api.request.fields import check_body
from tunery.gateway.api.request.prompts import PromptOptions, read_prompts
from tunery.gateway.api.request.target import resolve_target
from tunery.gateway.api.response.embeddings import Vector, format_vector
from tunery.gateway.api.response.metering import CANCELLED, COMPLETED, TokenCounts, metered
from tunery.gateway.api.schemas.requests import EmbeddingRequest
from tunery.gateway.api.schemas.responses import Embedding, EmbeddingList, EmbeddingUsage
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.messages import Embed, Ready
from tunery.gateway.metrics.recorder import Subject
from tunery.gateway.resolver import Target
from tunery.gateway.tenancy.limits.reservation import Reservation
from tunery.gateway.tenancy.scopes import INFER, SCOPE
from tunery.plugins.runtime.unique_id import unique_id
from tunery.registry.errors import InvalidInput, TuneryError

__all__ = ["embeddings", "prepare_embeddings"]

MAX_INPUTS = 2048
"""OpenAI's limit."""


@post(
    "/v1/embeddings",
    operation_id="createEmbedding",
    summary="Embed texts with the adapter (or base) that `model` names",
    status_code=200,
    responses=ERRORS,
    tags=["inference"],
    opt={SCOPE: INFER},
)
async def embeddings(
    data: JSONBody[EmbeddingRequest], gateway: NamedDependency[Gateway], request: Request[Any, Any, Any]
) -> Response[EmbeddingList]:
    """Embed each input: the pooled hidden states of the last layer, after the base's final norm."""
    call = await call_of(request)
    builder = await cancel_on_disconnect(request, lambda: prepare_embeddings(data, call, gateway))
    answer = await cancel_on_disconnect(request, builder.complete)
    return Response(answer, headers=gateway.headers(builder.target, call.principal))


async def prepare_embeddings(data: EmbeddingRequest, call: Call, gateway: Gateway) -> EmbeddingBuilder:
    """Check, resolve and tokenize an embedding request: all that comes before the engine."""
    check_body(call.body, EmbeddingRequest)
    target = resolve_target(call, data, gateway)
    ready = await gateway.wait_for_engine(target, background=call.background)
    return EmbeddingBuilder(data, call, gateway, target, await _read_inputs(data, gateway, ready))


@dataclass(frozen=True)
class EmbeddingBuilder:
    """The response to a request whose inputs are tokenized."""

    data: EmbeddingRequest
    call: Call
    gateway: Gateway
    target: Target
    inputs: list[tuple[int, ...]]

    async def complete(self) -> EmbeddingList:
        """The finished response."""
        size = sum(map(len, self.inputs))

        def used(outcome: str) -> TokenCounts:
            """All of it, unless the engine failed."""
            counts = outcome in (COMPLETED, CANCELLED, InvalidInput.code)
            return TokenCounts(size if counts else 0, 0, 0)

        async with metered(self.call, self.target, gateway=self.gateway, most=size, used=used) as reservation:
            vectors = await _embed(
                self.data, self.gateway, self.target, self.inputs, self.call, reservation=reservation
            )
        rows = [Embedding(index=index, embedding=vector) for index, vector in enumerate(vectors)]
        return EmbeddingList(data=rows, model=self.data.model, usage=EmbeddingUsage(size, size))


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
    data: EmbeddingRequest,
    gateway: Gateway,
    target: Target,
    inputs: Sequence[tuple[int, ...]],
    call: Call,
    *,
    reservation: Reservation,
) -> list[Vector]:
    """Every input's vector. A failure of one, or the client's disconnect, cancels the others."""
    trace = call.trace
    trace.adapter, trace.version = target.title, target.version.number if target.version else None
    trace.prompt_tokens = sum(map(len, inputs))
    subject, pooling = gateway.subject(target), data.pooling or "mean"

    async def embed(prompt: tuple[int, ...]) -> Vector:
        command = Embed(
            id=unique_id(),
            prompt=prompt,
            pooling=pooling,
            composition=target.composition,
            tenant=target.tenant,
            cache_salt=target.cache_salt,
            background=call.background,
        )
        return format_vector(await _measured(gateway, command, subject, trace), data)

    with gateway.hold(len(inputs), target, param="input", background=call.background):
        reservation.begun = True
        tasks = [asyncio.create_task(embed(prompt)) for prompt in inputs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _measured(gateway: Gateway, command: Embed, subject: Subject, trace: Trace) -> list[float]:
    """The engine's vector, counted and timed."""
    metrics, outcome = gateway.metrics, "cancelled"
    metrics.count_prompt(subject, tokens=len(command.prompt))
    try:
        async with gateway.place(background=command.background):
            trace.note_handed()
            embedded = await gateway.engine.embed(command)
            trace.note_token(time.perf_counter())
            trace.timings = trace.timings or embedded.timings
        outcome = "stop"
    except TuneryError as caught:
        error = gateway.cause_of(caught)
        outcome = error.code
        if error is caught:
            raise
        raise error from caught
    finally:
        seconds = None if command.background else time.perf_counter() - trace.started
        metrics.count_finished(subject, outcome=outcome, tokens=0, seconds=seconds)
    return embedded.vector
