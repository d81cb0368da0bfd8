"""What a check sees of one record of a file: its bytes, the row they mean, and how it renders, each computed once on
demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from tunery.plugins.data.checks.minhash import signature
from tunery.plugins.data.read.formats import Fault, InvalidRow
from tunery.plugins.data.read.row import Row, parse_object, to_row
from tunery.plugins.data.render.examples import RenderedExample
from tunery.plugins.data.render.renderer import Renderer
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidInput

__all__ = ["Location", "ParsedRecord", "message_path"]


class Location(msgspec.Struct, frozen=True):
    """Where a record stands: `line` counts from 1; `held_out` is true where the file is a held-out one."""

    file: str
    line: int
    held_out: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class ParsedRecord:
    """One record. `row` is None where the record is blank, or where `invalid` says why it is not a row.

    `value` is the JSON object, where there is one; `renderer` is None without a base.
    """

    def __init__(
        self, location: Location, raw: bytes, *, formats: Sequence[FormatInfo], renderer: Renderer | None
    ) -> None:
        self.location, self.raw, self.renderer, self._formats = location, raw, renderer, formats
        self.value: dict[str, Any] | None = None
        self.row: Row | None = None
        self.invalid: InvalidRow | None = None
        try:
            self.value = parse_object(location.line, raw)
            self.row = None if self.value is None else to_row(location.line, self.value, formats)
        except InvalidRow as error:
            self.invalid = error
        except Exception as error:  # a third party's format may raise anything
            text = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            message, _, fix = text.rpartition("; ")
            self.invalid = InvalidRow([Fault("$", message, fix) if message else Fault("$", text)])

    @cached_property
    def rendered(self) -> list[RenderedExample] | InvalidInput:
        """The row's examples at full length, or the error where the base's template refuses it. [] without a row or a
        base."""
        if self.row is None or self.renderer is None:
            return []
        try:
            renderer, tools = self.renderer, self.row.tools
            return [
                example for messages in self.row.conversations for example in renderer.examples(messages, tools=tools)
            ]
        except InvalidInput as error:
            return error

    @property
    def examples(self) -> list[RenderedExample]:
        """The row's examples at full length; [] where it does not render."""
        return self.rendered if isinstance(self.rendered, list) else []

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Every text of the row as written, with its JSON path; columns that the format does not read are left out."""
        if self.value is None:
            return []
        extra = set(self.extra_columns)
        return list(_texts("$", {name: item for name, item in self.value.items() if name not in extra}))

    @property
    def extra_columns(self) -> list[str]:
        """Columns with a value that the row's format does not read; [] for a format that does not declare its keys."""
        if self.row is None or self.value is None:
            return []
        keys = next(info.keys for info in self._formats if info.name == self.row.format)
        return [name for name, item in self.value.items() if item is not None and name not in keys] if keys else []

    @cached_property
    def answer(self) -> str:
        """The text of the last answer, tool calls included."""
        return "\n".join(map(_text, self._answer)) if self.row else ""

    @cached_property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal for equal prompts (everything before the last answer), ignoring white space."""
        return _key([self._prompt, self._valid_row.tools])

    @cached_property
    def answer_key(self) -> bytes:
        """16 bytes that are equal for equal last answers (and rejected answers), ignoring white space."""
        return _key([self._answer, self._valid_row.rejected])

    @cached_property
    def loose_keys(self) -> tuple[bytes, bytes]:
        """8 bytes each for the prompt and the answer, ignoring case and white space."""
        prompt, answer = (
            "\n".join(f"{message['role']} {_text(message)}" for message in part)
            for part in (self._prompt, self._answer)
        )
        return _loose_key(prompt), _loose_key(answer)

    @cached_property
    def preference_keys(self) -> tuple[bytes, bytes] | None:
        """16 bytes each for the chosen and the rejected answer of a preference row; None for other rows."""
        rejected = self._valid_row.rejected
        return None if rejected is None else (_key(self._answer), _key(rejected))

    @cached_property
    def signature(self) -> bytes | None:
        """The MinHash of prompt and answers without system messages; None where they are too short to compare."""
        messages = [*self._valid_row.messages, *(self._valid_row.rejected or [])]
        return signature("\n".join(_text(m) for m in messages if m["role"] not in ("system", "developer")))

    @property
    def _prompt(self) -> Sequence[Mapping[str, Any]]:
        """The messages before the last answer."""
        return self._valid_row.messages[: _prompt_length(self._valid_row.messages)]

    @property
    def _answer(self) -> Sequence[Mapping[str, Any]]:
        """The last answer, and what follows it."""
        return self._valid_row.messages[_prompt_length(self._valid_row.messages) :]

    @property
    def _valid_row(self) -> Row:
        if self.row is None:
            raise InvalidInput(f"{self.location} is not a row; look at `row` first")
        return self.row


def message_path(record: ParsedRecord, index: int) -> str:
    """The JSON path of message `index`; "$" in formats that do not write a list of messages."""
    return f"$.messages[{index}]" if record.row and record.row.format == "chat" else "$"


def _prompt_length(messages: Sequence[Mapping[str, Any]]) -> int:
    return max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))


def _texts(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with its path; names of fields are not texts."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(f"{path}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{path}[{index}]", item)


def _text(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    content = str(message.get("content") or "")
    return content + json.dumps(calls, sort_keys=True, ensure_ascii=False) if calls else content


def _key(value: Any) -> bytes:
    text = json.dumps(_normalized(value), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _loose_key(text: str) -> bytes:
    return hashlib.blake2b("".join(text.casefold().split()).encode(), digest_size=8).digest()


def _normalized(value: Any) -> Any:
    """The value with runs of white space as one space, and without ids and weights, which carry no meaning."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        kept = ((name, item) for name, item in value.items() if name not in ("id", "tool_call_id", "weight"))
        return {name: _normalized(item) for name, item in kept}
    if isinstance(value, list):
        return [_normalized(item) for item in value]
    return value
