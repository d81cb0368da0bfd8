"""What is around every request that the engine computes: its limits before it, and the record of its usage after it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from tunery.gateway.api.request.call import Call
from tunery.gateway.api.state import Gateway
from tunery.gateway.engine.composition import composition_digest, composition_title
from tunery.gateway.resolver import Target
from tunery.gateway.tenancy.limits.reservation import Reservation
from tunery.registry.errors import TuneryError
from tunery.registry.usage.records import UsageRecord

__all__ = ["CANCELLED", "COMPLETED", "TokenCounts", "metered"]

COMPLETED, CANCELLED = "completed", "cancelled"
"""Outcomes besides the codes of errors."""


class TokenCounts(msgspec.Struct, frozen=True):
    """The tokens that a request has used."""

    input: int
    cached: int
    output: int


@contextlib.asynccontextmanager
async def metered(
    call: Call, target: Target, *, gateway: Gateway, most: int, used: Callable[[str], TokenCounts]
) -> AsyncIterator[Reservation]:
    """Admit a request of at most `most` tokens while the context lasts, and record what it used however that ends.

    `used` is given the outcome. One whose reservation was not `begun` leaves no record. Raises LimitReached.
    """
    async with gateway.limiter.admit(call.principal, tokens=most, background=call.background) as reservation:
        outcome = "internal_error"
        try:
            yield reservation
            outcome = COMPLETED
        except (asyncio.CancelledError, GeneratorExit):
            outcome = CANCELLED
            raise
        except TuneryError as error:
            outcome = error.code
            raise
        finally:
            if reservation.begun:
                tokens = used(outcome)
                reservation.spent = tokens.input + tokens.output
                # What is to be recorded counts before what was reserved is given back.
                _record(call, target, gateway, tokens, outcome)


def _record(call: Call, target: Target, gateway: Gateway, tokens: TokenCounts, outcome: str) -> None:
    record = UsageRecord(
        at=gateway.usage.now(),
        tenant=call.principal.tenant,
        key=call.principal.key or "",
        model=composition_title(target.composition) or target.base.name,
        digest=composition_digest(target.composition),
        endpoint=call.endpoint,
        batch=call.background,
        input_tokens=tokens.input,
        cached_tokens=tokens.cached,
        output_tokens=tokens.output,
        milliseconds=round(1000 * (time.perf_counter() - call.trace.started)),
        request_id=call.trace.request_id,
        outcome=outcome,
    )
    if call.usage is None:
        gateway.usage.add(record)
    else:
        call.usage.append(record)
