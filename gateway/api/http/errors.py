"""Turns errors into HTTP responses with OpenAI's error envelope, one status for each kind of error.

The text of an unexpected exception is logged and never sent to a client.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.schemas.responses import ErrorBody, ErrorEnvelope
from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    InvalidInput,
    LimitReached,
    NotFound,
    Overloaded,
    StorageBusy,
    StorageFailed,
    TuneryError,
    Unavailable,
)

__all__ = ["ERRORS", "EXCEPTION_HANDLERS", "Refused", "envelope", "error_responses", "status_of", "wrong_shape"]

log = logging.getLogger("tunery.gateway")

_STATUSES: tuple[tuple[type[TuneryError], int], ...] = (
    (InvalidInput, 400),
    (NotFound, 404),
    (Conflict, 400),
    (ArtifactRefused, 422),
    (Overloaded, 429),
    (Unavailable, 503),
    (StorageBusy, 503),
    (StorageFailed, 500),
)
"""A conflict is 400 and not 409, because OpenAI's clients retry a 409 automatically."""

_MISSING = re.compile(r"Object missing required field `(.+)`")
_SHOWN = 200
"""Characters of a path that an error shows."""
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(HTTPException):
    """A request refused before its body is parsed; `code` is a stable, machine-readable word. With `close` nothing more is
    read from its connection."""

    def __init__(
        self, message: str, *, status: int, code: str, close: bool = False, headers: dict[str, str] | None = None
    ) -> None:
        headers = (headers or {}) | ({"connection": "close"} if close else {})
        super().__init__(detail=message, status_code=status, headers=headers)
        self.code = code


def status_of(error: TuneryError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def envelope(message: str, *, status: int, code: str | None = None, param: str | None = None) -> ErrorEnvelope:
    """OpenAI's error object."""
    return ErrorEnvelope(ErrorBody(message, _TYPES.get(status, "invalid_request_error"), param, code))


def _tunery_error(request: Request[Any, Any, Any], error: TuneryError) -> Response[ErrorEnvelope]:
    status = status_of(error)
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, Unavailable | StorageBusy) else {}
    if isinstance(error, LimitReached):
        headers = (headers if error.wait is not None else {}) | error.headers
    body = envelope(error.args[0], status=status, code=error.code, param=error.param)
    trace_of(request).error = error.code
    return Response(body, status_code=status, headers=headers)


def _validation_error(request: Request[Any, Any, Any], error: ValidationException) -> Response[ErrorEnvelope]:
    """A body or parameter of the wrong shape; the response names the field."""
    extra: Any = error.extra
    first = extra[0] if isinstance(extra, list) and extra else {}
    key, message = first.get("key") or "", first.get("message") or error.detail
    if key:
        return _tunery_error(request, wrong_shape(message, "" if key == "data" else key))
    return Response(envelope(message, status=400, code="invalid_value"), status_code=400)


def wrong_shape(message: str, place: str) -> InvalidInput:
    """The error for a body that is not of its type: what msgspec says, and where in the body, "" for all of it."""
    param = re.split(r"[.\[`]", place)[0] or None
    if missing := _MISSING.fullmatch(message):
        text = f"{param or 'the body'} has no field {missing[1]!r}, which is required"
        return InvalidInput(text, code="missing_required_parameter", param=param or missing[1])
    if param is None:
        text = f"the body is not a JSON object: {message}"
    else:
        text = message if param in message else f"{param}: {message}"
    return InvalidInput(text, code="invalid_value", param=param)


def _http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorEnvelope]:
    status = error.status_code
    if status >= 500:
        return _unexpected(request, error)
    if isinstance(error, Refused):
        trace_of(request).error = error.code
        body = envelope(error.detail, status=status, code=error.code)
        return Response(body, status_code=status, headers=dict(error.headers or {}))
    if isinstance(error.__cause__, SerializationException):
        return Response(envelope(_not_json(error.detail), status=status, code="invalid_json"), status_code=status)
    message = {
        404: f"there is nothing at {request.url.path[:_SHOWN]}; see /docs",
        405: f"{request.method[:_SHOWN]} is not allowed at {request.url.path[:_SHOWN]}; see /docs",
        413: "the request body is too large",
    }.get(status, error.detail)
    return Response(envelope(message, status=status), status_code=status, headers=dict(error.headers or {}))


def _not_json(detail: str) -> str:
    """What is wrong with a body. The parser reports half a surrogate pair, such as a lone \\ud800, as an early end."""
    if "truncated" in detail:
        return "the body is not JSON: it ends early, or a string has half of a surrogate pair"
    return f"the body is not JSON: {detail}"


def _too_deep(request: Request[Any, Any, Any], error: RecursionError) -> Response[ErrorEnvelope]:
    log.warning("request %s to %s is nested too deeply", trace_of(request).request_id, _route(request))
    return Response(envelope("the request is nested too deeply", status=400, code="invalid_value"), status_code=400)


def _route(request: Request[Any, Any, Any]) -> str:
    """The route's template: a path may have line ends, which would look like another line of the log."""
    return str(request.scope.get("path_template") or "an unknown route")


def _unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorEnvelope]:
    log.error("request %s to %s failed", trace_of(request).request_id, _route(request), exc_info=error)
    trace_of(request).error = "internal_error"
    message = f"something went wrong here; it has been logged under request {trace_of(request).request_id}"
    return Response(envelope(message, status=500, code="internal_error"), status_code=500)


_DESCRIPTIONS = {
    400: "A field is invalid; `param` names it.",
    403: "The request's Host or Origin is not allowed.",
    404: "No such model. The base never answers in its place.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The adapter's weights cannot be served.",
    429: "A limit is reached, or too many requests are waiting; see Retry-After.",
    500: "An internal error, logged under the request id in the message.",
    503: "The engine is starting, another process holds the registry, or the server is shutting down; see Retry-After.",
}


def error_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """The documentation of an operation's error responses. 403 is possible everywhere, and 503 wherever 500 is: what uses
    the registry may find it held by another process."""
    return {
        status: ResponseSpec(ErrorEnvelope, description=_DESCRIPTIONS[status], generate_examples=False)
        for status in sorted({*statuses, 403, *({503} if 500 in statuses else ())})
    }


ERRORS = error_responses(*_DESCRIPTIONS)
"""The error responses of operations that run on the engine."""

EXCEPTION_HANDLERS: dict[Any, Any] = {
    TuneryError: _tunery_error,
    ValidationException: _validation_error,
    HTTPException: _http_error,
    RecursionError: _too_deep,
    Exception: _unexpected,
}
