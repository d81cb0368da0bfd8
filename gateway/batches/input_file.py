"""Reads and checks a batch's input file: one request a line, in OpenAI's form, with OpenAI's errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tunery.gateway.api.schemas.batches import BatchError

__all__ = ["BatchInput", "Line", "read_input", "read_line"]

MAX_FILE = 200 * 2**20
"""Bytes of an input file; OpenAI's limit."""
MAX_REQUESTS = 50_000
"""OpenAI's limit."""
MAX_LINE = 16 * 2**20
"""Bytes of a line, as of a request's body."""
MAX_ERRORS = 100
"""Errors after which no more are looked for."""
MAX_CUSTOM_ID = 512
"""Characters."""

PAUSE_EVERY, PAUSE = 64, 0.001
"""Lines between pauses, and their seconds, in which the event loop has the interpreter to itself."""

Fields = dict[str, msgspec.Raw]


class Line(msgspec.Struct, frozen=True):
    """A request that has been checked."""

    custom_id: str
    body: msgspec.Raw


class Place(NamedTuple):
    """Where a line is: its number, counted from 1, and its bytes."""

    number: int
    offset: int
    size: int


class BatchInput(msgspec.Struct, frozen=True):
    """An input file: where its requests are, the model that all of them name, and what is wrong with it."""

    places: list[Place]
    model: str | None
    errors: list[BatchError]


class _Problem(Exception):
    """Something is wrong with a line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_input(path: Path, endpoint: str) -> BatchInput:
    """Check every line of a file of requests for `endpoint`; for a thread, which leaves room for others now and then."""
    if (size := path.stat().st_size) > MAX_FILE:
        return _refused("file_too_large", f"The batch input file has {size} bytes; the limit is {MAX_FILE}.")
    places: list[Place] = []
    errors: list[BatchError] = []
    models: set[str | None] = set()
    known: set[str] = set()
    for place, data in _lines(path):
        if place.number % PAUSE_EVERY == 0:
            time.sleep(PAUSE)
        if len(places) >= MAX_REQUESTS:
            return _refused("too_many_tasks", f"The batch input file has more than {MAX_REQUESTS} requests.")
        try:
            line = _check(data, endpoint, known)
        except _Problem as problem:
            message, number = str(problem), place.number
            errors.append(BatchError(code=problem.code, line=number, message=message, param=problem.param))
            if len(errors) >= MAX_ERRORS:
                break
            continue
        places.append(place)
        known.add(line.custom_id)
        models.add(_model(line.body))
    if not (places or errors):
        return _refused(
            "empty_file", "The batch input file is empty. Please ensure that the batch contains at least one request."
        )
    return BatchInput(places, models.pop() if len(models) == 1 else None, errors)


def read_line(path: Path, place: Place) -> Line:
    """A line that `read_input` has found right."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, place.size, place.offset)
    finally:
        os.close(descriptor)
    return msgspec.json.decode(data, type=Line)


def _refused(code: str, message: str) -> BatchInput:
    return BatchInput([], None, [BatchError(code=code, message=message)])


def _lines(path: Path) -> Iterator[tuple[Place, bytes]]:
    """The lines that are not blank; of one that is too long only its beginning, without an end."""
    number = offset = 0
    with path.open("rb") as file:
        while data := file.readline(MAX_LINE + 1):
            number += 1
            start, offset = offset, offset + len(data)
            if data.strip():
                yield Place(number, start, len(data)), data
            while len(data) > MAX_LINE and not data.endswith(b"\n"):
                data = file.readline(MAX_LINE + 1)
                offset += len(data)


def _check(data: bytes, endpoint: str, known: set[str]) -> Line:
    """The request in a line; raise _Problem with the first thing that is wrong."""
    if len(data) > MAX_LINE:
        raise _Problem("invalid_json_line", f"This line is longer than {MAX_LINE} bytes.")
    fields = _fields(data)
    custom_id = _text(fields, "custom_id")
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise _Problem("invalid_value", f"custom_id has 1 to {MAX_CUSTOM_ID} characters.", "custom_id")
    if custom_id in known:
        raise _Problem(
            "duplicate_custom_id",
            "The custom_id for this request is a duplicate of another request. The custom_id parameter must be unique "
            "for each request in a batch.",
            "custom_id",
        )
    if (method := _text(fields, "method")) != "POST":
        raise _Problem("invalid_method", f"Invalid value: {method[:20]!r}. Supported values are: 'POST'.", "method")
    if _text(fields, "url") != endpoint:
        raise _Problem("invalid_url", "The URL provided for this request does not match the batch endpoint.", "url")
    if not bytes(_required(fields, "body")).startswith(b"{"):
        raise _Problem("invalid_value", "Invalid type for 'body': expected an object.", "body")
    return Line(custom_id, fields["body"])


def _fields(data: bytes) -> Fields:
    try:
        data.decode()
        return msgspec.json.decode(data, type=Fields)
    except msgspec.ValidationError as error:
        raise _Problem("invalid_json_line", "This line is not a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Problem("invalid_json_line", "This line is not parseable as valid JSON.") from error


def _required(fields: Fields, name: str) -> msgspec.Raw:
    raw = fields.get(name)
    if raw is None or bytes(raw) == b"null":
        raise _Problem("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    return raw


def _text(fields: Fields, name: str) -> str:
    try:
        return msgspec.json.decode(_required(fields, name), type=str)
    except msgspec.DecodeError as error:
        raise _Problem("invalid_value", f"Invalid type for '{name}': expected a string.", name) from error


def _model(body: msgspec.Raw) -> str | None:
    """The model that a body names, if it does."""
    try:
        return msgspec.json.decode(body, type=_NamesModel).model
    except (msgspec.DecodeError, RecursionError):
        return None


class _NamesModel(msgspec.Struct):
    model: str
