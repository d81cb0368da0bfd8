"""One record as a training row: parse its JSON, and read it in the one format that fits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from tunery.plugins.data.read.formats import Fault, InvalidRow
from tunery.plugins.data.read.formats.faults import json_type
from tunery.plugins.data.read.json_shape import Limits, exceeds
from tunery.plugins.data.read.record import MAX_ROW
from tunery.plugins.hookspecs import Conversation, FormatInfo

__all__ = ["Row", "parse_object", "parse_row", "to_row"]

_DIGITS = 4300
"""Digits of the longest number, which is also the most that Python reads."""
_LIMITS = Limits(members=50_000, texts=100_000, values=100_000)
"""What checking a row costs is in proportion to its values: a second for a hundred thousand."""
_SHOWN = 5
"""Names that a message lists."""


class Row(msgspec.Struct, frozen=True):
    """One training row. `line` counts from 1, `format` is the format's name; the rest is as in `Conversation`."""

    line: int
    format: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    prompt: int | None = None

    @property
    def prompt_messages(self) -> list[dict[str, Any]]:
        """In a preference row, the messages that both answers follow."""
        return self.messages[: len(self.messages) - 1 if self.prompt is None else self.prompt]

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        """The conversations to render: one, or in a preference row the chosen and the rejected one.

        Of those two only the answers are trained: earlier assistant messages have weight 0.
        """
        if self.rejected is None:
            return [self.messages]
        prompt = [
            message | {"weight": 0} if message["role"] == "assistant" else message for message in self.prompt_messages
        ]
        return [[*prompt, *self.messages[len(prompt) :]], [*prompt, *self.rejected]]


def parse_row(number: int, raw: bytes, formats: Sequence[FormatInfo]) -> Row | None:
    """The row in a record, None where it is blank. Raises InvalidRow with everything that is wrong with it."""
    value = parse_object(number, raw)
    return None if value is None else to_row(number, value, formats)


def parse_object(number: int, raw: bytes) -> dict[str, Any] | None:
    """The JSON object in a record, None where it is blank. Raises InvalidRow."""
    if len(raw) > MAX_ROW:
        raise InvalidRow([Fault("$", f"is longer than {MAX_ROW // 2**20} MiB", "put one JSON object on each line")])
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return None
    if exceeds(raw, _LIMITS):
        problem = f"has more than {_LIMITS.values:,} values, or {_LIMITS.members:,} objects, lists and fields of them"
        raise InvalidRow([Fault("$", problem, "split it")])
    return _json(raw)


def to_row(number: int, value: dict[str, Any], formats: Sequence[FormatInfo]) -> Row:
    """The row that an object means, in the one format that fits it. A null value counts as absent.

    A single format is taken without asking whether it fits. Raises InvalidRow where no format fits, or several do.
    """
    value = {name: item for name, item in value.items() if item is not None}
    fitting = list(formats) if len(formats) == 1 else [info for info in formats if info.sniff(value)]
    if not fitting:
        keys = [name[:60] for name in sorted(value)[:8]]
        summaries = "; ".join(f"{info.name}: {info.summary}" for info in formats)
        raise InvalidRow([Fault("$", f"has the keys {keys}, which fit no format", f"write one of {summaries}")])
    if len(fitting) > 1:
        raise InvalidRow(
            [Fault("$", f"fits {' and '.join(info.name for info in fitting)} at once", "keep the keys of one")]
        )
    conversation = fitting[0].to_conversation(value)
    if not isinstance(conversation, Conversation):
        conversation = Conversation(messages=conversation)
    return Row(
        number,
        fitting[0].name,
        conversation.messages,
        conversation.tools,
        conversation.rejected,
        conversation.prompt,
    )


def _json(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRow(
            [Fault("$", f"is not UTF-8 at byte {error.start + 1}", "save the file as UTF-8")], rule="encoding"
        ) from error
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise InvalidRow([Fault("$", f"is not JSON at column {error.colno} ({error.msg})", "fix the line")]) from error
    except RecursionError as error:
        raise InvalidRow([Fault("$", "is nested too deeply", "flatten it")]) from error
    if not isinstance(value, dict):
        raise InvalidRow([Fault("$", f"is {json_type(value)}, not an object", "write {...}")])
    try:
        # Text that was UTF-8 holds half a pair only where an escape spells it.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRow(
            [Fault("$", "holds half of a surrogate pair (\\ud800 to \\udfff)", "fix the escape")], rule="encoding"
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = [repr(name)[:60] for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        others = f" and {len(twice) - _SHOWN} others" if len(twice) > _SHOWN else ""
        raise InvalidRow([Fault("$", f"names {', '.join(twice[:_SHOWN])}{others} twice", "keep one")])
    return value


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise InvalidRow([Fault("$", f"holds a number of {len(digits)} digits", "write it as a text, in quotes")])
    return int(digits)


def _constant(name: str) -> Any:
    raise InvalidRow([Fault("$", f"holds {name}, which is not JSON", "write a number or null")])
