"""Answers one line of a batch as its endpoint does over HTTP, and tries again where the engine could not answer."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any, NamedTuple

import msgspec

from tunery.gateway.api.http.body_shape import check_shape
from tunery.gateway.api.http.errors import envelope, status_of
from tunery.gateway.api.http.trace import Trace
from tunery.gateway.api.inference import ENDPOINTS, Endpoint, answer
from tunery.gateway.api.request.call import Call
from tunery.gateway.api.schemas.items import ResponseUsage
from tunery.gateway.api.state import Gateway
from tunery.gateway.batches.input_file import Line
from tunery.gateway.batches.journal import Entry, Tokens
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.errors import StorageFailed, TuneryError, Unavailable
from tunery.registry.records import Batch
from tunery.registry.usage.records import UsageRecord

__all__ = ["Answered", "answer_line", "expired_line"]

log = logging.getLogger("tunery.gateway")

MAX_TRIES = 5
"""Times that a request may fail by no fault of its own once it has begun, such as when the engine dies."""
NOT_BEGUN = frozenset({"engine_starting", "draining", "overloaded", "rate_limit_exceeded"})
"""Codes of errors that say that a request has not begun; it waits for as long as it takes."""
FINAL = frozenset({"insufficient_quota"})
"""Codes of errors that waiting does not end in time."""
MAX_PAUSE = 5.0
"""Seconds between two tries."""
NO_TOKENS: Tokens = (0, 0, 0)


class Answered(NamedTuple):
    """The answer to a request, and what that used, which is recorded when the answer is kept."""

    entry: Entry
    usage: list[UsageRecord]


async def answer_line(number: int, line: Line, *, batch: Batch, gateway: Gateway) -> Answered:
    """The answer to a request of a batch, be it an error."""
    principal = Principal(
        tenant=batch.tenant,
        adapters=batch.adapters,
        key=batch.key,
        shares=gateway.shares,
        keyed=gateway.settings.auth,
    )
    call = Call(bytes(line.body), Trace(), principal, background=True, endpoint=batch.endpoint, usage=[])
    try:
        check_shape(call.body)
        body = await _patiently(ENDPOINTS[batch.endpoint], call, gateway)
    except TuneryError as error:
        status = status_of(error)
        body = envelope(error.args[0], status=status, code=error.code, param=error.param)
    except Exception:
        log.exception("request %s of a batch failed", call.trace.request_id)
        message = f"something went wrong here; it has been logged under request {call.trace.request_id}"
        status, body = 500, envelope(message, status=500, code="internal_error")
    else:
        return Answered(_entry(number, line, call, 200, body, _tokens(body)), call.usage or [])
    return Answered(_entry(number, line, call, status, body, NO_TOKENS), call.usage or [])


def expired_line(line: Line) -> bytes:
    """The line of the error file for a request that was not answered in time."""
    message = "This request could not be executed before the completion window expired."
    error = {"code": "batch_expired", "message": message}
    return msgspec.json.encode({"id": _new_id(), "custom_id": line.custom_id, "response": None, "error": error})


async def _patiently(endpoint: Endpoint, call: Call, gateway: Gateway) -> Any:
    """The answer, after as many tries as it takes where the failure is not the request's own."""
    tries = 0
    while True:
        if call.usage:
            # Only what the last try used is the client's.
            call.usage.clear()
        try:
            return await answer(endpoint, call, gateway)
        except (Unavailable, StorageFailed) as error:
            if error.code in FINAL:
                raise
            if error.code not in NOT_BEGUN:
                tries += 1
            if tries >= MAX_TRIES:
                raise
            pause = float(getattr(error, "retry_after", 1.0))
        await asyncio.sleep(min(pause, MAX_PAUSE))


def _entry(number: int, line: Line, call: Call, status: int, body: Any, tokens: Tokens) -> Entry:
    response = {"status_code": status, "request_id": call.trace.request_id, "body": body}
    result = {"id": _new_id(), "custom_id": line.custom_id, "response": response, "error": None}
    return Entry(number, status != 200, tokens, msgspec.Raw(msgspec.json.encode(result)))


def _new_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"


def _tokens(body: Any) -> Tokens:
    """What a response says of its tokens."""
    usage = body.usage
    if isinstance(usage, ResponseUsage):
        return usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens
    details = getattr(usage, "prompt_tokens_details", None)
    return usage.prompt_tokens, details.cached_tokens if details else 0, getattr(usage, "completion_tokens", 0)
