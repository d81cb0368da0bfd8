"""Owns what checks see of one line of a file: its bytes, what they mean, how they render; each worked out once and when asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from tunery.plugins.data.checks.minhash import signature
from tunery.plugins.data.read.dataset import Row, parse_json, to_row
from tunery.plugins.data.read.formats import RowInvalid
from tunery.plugins.data.render.renderer import Rendered, Renderer
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidInput

__all__ = ["Line", "Place", "prompt_length", "walk"]


class Place(msgspec.Struct, frozen=True):
    """A line of a file: `line` counts from 1; `validation` where the file is held out."""

    file: str
    line: int
    validation: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Line:
    """One line. `row` is None where it is blank or `invalid` says why it is no row; `renderer` is None without a base."""

    def __init__(self, place: Place, raw: bytes, *, formats: Sequence[FormatInfo], renderer: Renderer | None) -> None:
        self.place, self.raw, self.renderer, self._formats = place, raw, renderer, formats
        self.value: dict[str, Any] | None = None
        self.row: Row | None = None
        self.invalid: RowInvalid | None = None
        try:
            self.value = parse_json(place.line, raw)
            self.row = None if self.value is None else to_row(place.line, self.value, formats)
        except RowInvalid as error:
            self.invalid = error
        except Exception as error:  # a third party's format may raise anything
            self.invalid = RowInvalid([("$", getattr(error, "message", None) or f"{type(error).__name__}: {error}")])

    @cached_property
    def rendered(self) -> list[Rendered] | InvalidInput:
        """The row's examples, of full length; the error where the base's template refuses it; none without row or base."""
        if self.row is None or self.renderer is None:
            return []
        try:
            renderer, tools = self.renderer, self.row.tools
            return [found for said in self.row.conversations for found in renderer.examples(said, tools=tools)]
        except InvalidInput as error:
            return error

    @property
    def examples(self) -> list[Rendered]:
        """The row's examples, of full length; none where it does not render."""
        return self.rendered if isinstance(self.rendered, list) else []

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Every text of the row as it is written, with its JSON path; columns that are not read aside."""
        if self.value is None:
            return []
        extra = set(self.extra_columns)
        return list(walk("$", {name: item for name, item in self.value.items() if name not in extra}))

    @property
    def extra_columns(self) -> list[str]:
        """Names of the row's columns with a value that its format does not read; none of a format that does not say what it reads."""
        if self.row is None or self.value is None:
            return []
        known = next(info.keys for info in self._formats if info.name == self.row.format)
        return [name for name, item in self.value.items() if item is not None and name not in known] if known else []

    @cached_property
    def answer(self) -> str:
        """The text of the last answer, calls included."""
        return "" if self.row is None else "\n".join(map(_said, self.row.messages[prompt_length(self.row.messages) :]))

    @cached_property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal where everything before the last answer is, but for white space."""
        row = self._row
        return _key([row.messages[: prompt_length(row.messages)], row.tools])

    @cached_property
    def answer_key(self) -> bytes:
        """16 bytes that are equal where the last answer is (and the rejected one), but for white space."""
        row = self._row
        return _key([row.messages[prompt_length(row.messages) :], row.rejected])

    @cached_property
    def loose_keys(self) -> tuple[bytes, bytes]:
        """8 bytes each for what comes before the last answer and for the answer, equal for equal ones but for case and white space."""
        row = self._row
        at = prompt_length(row.messages)
        asked, answered = (
            "\n".join(f"{m['role']} {_said(m)}" for m in part) for part in (row.messages[:at], row.messages[at:])
        )
        return _loose_key(asked), _loose_key(answered)

    @cached_property
    def halves(self) -> tuple[bytes, bytes] | None:
        """Of a row of preference, 16 bytes for the better answer and 16 for the worse, equal for equal ones; None for other rows."""
        row = self._row
        if row.rejected is None:
            return None
        return _key(row.messages[prompt_length(row.messages) :]), _key(row.rejected)

    @cached_property
    def signature(self) -> bytes | None:
        """The MinHash of what is asked and answered, system messages aside; None where that is too short to compare."""
        said = [*self._row.messages, *(self._row.rejected or [])]
        return signature(
            "\n".join(_said(message) for message in said if message["role"] not in ("system", "developer"))
        )

    @property
    def _row(self) -> Row:
        if self.row is None:
            raise InvalidInput(f"{self.place} is no row; look at `row` first")
        return self.row


def prompt_length(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages come before the last answer."""
    return max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))


def walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with its path; names of fields are not texts."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from walk(f"{path}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(f"{path}[{index}]", item)


def _said(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    content = str(message.get("content") or "")
    return content + json.dumps(calls, sort_keys=True, ensure_ascii=False) if calls else content


def _key(value: Any) -> bytes:
    text = json.dumps(_squeezed(value), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _loose_key(text: str) -> bytes:
    return hashlib.blake2b("".join(text.casefold().split()).encode(), digest_size=8).digest()


def _squeezed(value: Any) -> Any:
    """The value with runs of white space as one space; ids and weights, which say nothing, left out."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        kept = ((name, item) for name, item in value.items() if name not in ("id", "tool_call_id", "weight"))
        return {name: _squeezed(item) for name, item in kept}
    if isinstance(value, list):
        return [_squeezed(item) for item in value]
    return value
