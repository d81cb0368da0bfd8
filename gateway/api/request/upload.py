"""Receives a file in multipart/form-data and writes it to disk as it comes; it is never held in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, get_args

import msgspec
from litestar import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from tunery.gateway.api.http.connection import connection_of
from tunery.gateway.api.schemas.files import Purpose
from tunery.registry.errors import InvalidInput, StorageFailed, disk_code, is_full, near_or
from tunery.registry.names import file_name

__all__ = ["STREAMED", "Upload", "check_purpose", "receive_upload"]

STREAMED = "streamed_body"
"""The `opt` of routes whose body is multipart/form-data and is read by the handler."""
MAX_FIELD = 8192
"""Bytes of a form field that is not the file."""
MAX_PARTS = 32
WRITE_SIZE = 1 << 20
"""Bytes that are collected before they are written, off the event loop."""


class Upload(msgspec.Struct, frozen=True):
    """A received form: its fields, and the file's name and place."""

    fields: dict[str, str]
    name: str
    path: Path


async def receive_upload(
    request: Request[Any, Any, Any], folder: Path, *, field: str = "file", others: Collection[str] = ()
) -> Upload:
    """Write the file in form field `field` into `folder`. `others` are the other fields that the form may have.

    The body is read to its end even where it is refused, as a client that still sends would not read the response.
    Raises InvalidInput for a malformed form, one without the file or one with a field that is unknown or comes twice, and StorageFailed where the disk does not take it.
    """
    connection_of(request).stream_body()
    _, options = parse_options_header(request.headers.get("content-type", ""))
    form = _Form(folder, field, others)
    try:
        error = await _read(request, form, options.get("boundary", ""))
    finally:
        form.close()
    if isinstance(error, MultipartError):
        raise InvalidInput(
            f"the body is not multipart/form-data as its header says: {error}", code="invalid_multipart"
        ) from error
    if isinstance(error, OSError):
        advice = "; free some space on the server's disk" if is_full(error) else ""
        raise StorageFailed(
            f"the file could not be stored: {error.strerror}; nothing was kept{advice}", code=disk_code(error)
        ) from error
    if error is not None:
        raise error
    if form.name is None:
        raise InvalidInput(
            f"the form has no file in the field {field!r}", code="missing_required_parameter", param=field
        )
    return Upload(form.fields, form.name, form.path)


def check_purpose(purpose: str) -> str:
    """The purpose; raise InvalidInput for one that files cannot have."""
    if purpose not in (known := get_args(Purpose)):
        raise InvalidInput(f"{purpose[:80]!r} is not a purpose; known: {', '.join(known)}", param="purpose")
    return purpose


async def _read(request: Request[Any, Any, Any], form: _Form, boundary: str) -> Exception | None:
    """Read the whole body into the form; returns the first error, after which the rest is only read."""
    error: Exception | None = None
    parser = None
    try:
        parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
    except MultipartError as caught:
        error = caught
    async for chunk in request.stream():
        if error is None and parser is not None:
            try:
                for event in parser.parse(chunk):
                    await form.take(event)
            except (MultipartError, InvalidInput, OSError) as caught:
                error = caught
    if error is None and parser is not None:
        try:
            parser.close()
        except MultipartError as caught:
            error = caught
    return error


class _Form:
    """A form as its parts come."""

    def __init__(self, folder: Path, field: str, others: Collection[str]) -> None:
        self.fields: dict[str, str] = {}
        self.name: str | None = None
        self.path = folder / "upload"
        self._wanted, self._others = field, others
        self._part: MultipartSegment | None = None
        self._file: BinaryIO | None = None
        self._collected = bytearray()

    async def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        """Take a parser's event."""
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is None:
            await self._end()
        else:
            self._collected += event
            if self._file is not None and len(self._collected) >= WRITE_SIZE:
                await self._flush()
            elif self._file is None and len(self._collected) > MAX_FIELD:
                name = self._part.name if self._part else ""
                raise InvalidInput(f"the form's field {name[:80]!r} is too long", param=name[:80])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _begin(self, part: MultipartSegment) -> None:
        self._part = part
        self._collected.clear()
        if part.name == self._wanted:
            if self.name is not None:
                raise InvalidInput(f"the form has several files in the field {self._wanted!r}", param=self._wanted)
            self.name = file_name(part.filename or "")
            self._file = self.path.open("wb")
        elif part.name not in self._others:
            name = part.name[:80]
            hint = near_or(name, (self._wanted, *self._others), "leave it out")
            raise InvalidInput(
                f"the form's field {name!r} is not supported; {hint}", code="unsupported_parameter", param=name
            )
        elif part.name in self.fields:
            raise InvalidInput(f"the form has the field {part.name!r} twice; send it once", param=part.name)

    async def _end(self) -> None:
        part = self._part
        if part is None:
            return
        if self._file is not None:
            await self._flush()
            self._file.close()
            self._file = None
        else:
            try:
                self.fields[part.name] = self._collected.decode()
            except UnicodeDecodeError as error:
                raise InvalidInput(f"the form's field {part.name[:80]!r} is not UTF-8", param=part.name[:80]) from error
        self._part = None
        self._collected.clear()

    async def _flush(self) -> None:
        if self._file is not None:
            await asyncio.to_thread(self._file.write, bytes(self._collected))
            self._collected.clear()
