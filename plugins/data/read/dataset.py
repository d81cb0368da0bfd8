"""Owns reading a file of examples as rows; refuses the file when any row is bad, and says what is wrong with all of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import MAX_ROW, iter_records
from tunery.plugins.data.read.formats import RowInvalid
from tunery.plugins.hookspecs import Conversation, FormatInfo
from tunery.registry.errors import InvalidData, InvalidInput

__all__ = ["Row", "parse_json", "parse_line", "read_rows", "to_row"]

_PROBLEMS = 100
"""Faults after which a file is read no further."""

_SHOWN = 5
"""Names that a message lists."""


class Row(msgspec.Struct, frozen=True):
    """One example: `line` counts from 1, `format` is the format's name; the rest is what a Conversation has."""

    line: int
    format: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    prompt: int | None = None

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Of a pair, the messages that both answers follow."""
        return self.messages[: len(self.messages) - 1 if self.prompt is None else self.prompt]

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        """What is rendered: the messages; of a pair the better and the worse conversation, whose answers alone are trained."""
        if self.rejected is None:
            return [self.messages]
        asked = [message | {"weight": 0} if message["role"] == "assistant" else message for message in self.asked]
        return [[*asked, *self.messages[len(asked) :]], [*asked, *self.rejected]]


def read_rows(path: Path, *, formats: Iterable[FormatInfo] | Mapping[str, FormatInfo]) -> list[Row]:
    """Every row of a file; raise InvalidData that names every bad line with its JSON path and what to do.

    Blank lines are skipped. All rows must be in one format.
    """
    path = Path(path)
    known = list(formats.values()) if isinstance(formats, Mapping) else list(formats)
    rows: list[Row] = []
    problems: list[str] = []
    bad: set[int] = set()
    for number, raw in iter_records(path):
        try:
            row = parse_line(number, raw, known)
        except RowInvalid as error:
            bad.add(number)
            problems += error.problems(f"{path.name}:{number}")
            continue
        except InvalidInput as error:
            bad.add(number)
            problems.append(f"{path.name}:{number}: {error.message}")
            continue
        if row and rows and row.format != rows[0].format:
            bad.add(number)
            problems.append(
                f"{path.name}:{number}: $: is in the format {row.format}, line {rows[0].line} in {rows[0].format}; "
                "keep one format a file"
            )
        elif row:
            rows.append(row)
        if len(problems) > _PROBLEMS:
            raise InvalidData(
                f"{path}: more than {_PROBLEMS} faults in its first {number} rows; nothing was trained",
                problems=problems,
            )
    if problems:
        lines = len(bad)
        raise InvalidData(f"{path}: {lines} bad line{'s' * (lines > 1)}; nothing was trained", problems=problems)
    if not rows:
        raise InvalidData(f"{path} has no rows; write one JSON object a line")
    return rows


def parse_line(number: int, raw: bytes, formats: Sequence[FormatInfo]) -> Row | None:
    """The row of one line, None where it is blank; raise RowInvalid with all that is wrong with it."""
    value = parse_json(number, raw)
    return None if value is None else to_row(number, value, formats)


def parse_json(number: int, raw: bytes) -> dict[str, Any] | None:
    """The JSON object of one line, None where it is blank; raise RowInvalid."""
    if len(raw) > MAX_ROW:
        raise RowInvalid([("$", f"is longer than {MAX_ROW // 2**20} MiB; put one JSON object on each line")])
    if number == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        return None
    return _json(raw)


def to_row(number: int, value: dict[str, Any], formats: Sequence[FormatInfo]) -> Row:
    """The row that an object means, in the one format that fits it; a format that is the only one need not look like it.

    A key that is null is absent.
    """
    value = {name: item for name, item in value.items() if item is not None}
    found = list(formats) if len(formats) == 1 else [entry for entry in formats if entry.sniff(value)]
    if not found:
        names = "; ".join(f"{entry.name}: {entry.summary}" for entry in formats)
        raise RowInvalid(
            [("$", f"has the keys {[name[:60] for name in sorted(value)[:8]]}, which fit no format. {names}")]
        )
    if len(found) > 1:
        raise RowInvalid([("$", f"fits {' and '.join(entry.name for entry in found)} at once; keep the keys of one")])
    meant = found[0].to_conversation(value)
    if not isinstance(meant, Conversation):
        meant = Conversation(messages=meant)
    return Row(number, found[0].name, meant.messages, meant.tools, meant.rejected, meant.prompt)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowInvalid(
            [("$", f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8")], rule="encoding"
        ) from error
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise RowInvalid([("$", f"is not JSON at column {error.colno} ({error.msg}); fix the line")]) from error
    except RecursionError as error:
        raise RowInvalid([("$", "is nested too deeply; flatten it")]) from error
    if not isinstance(value, dict):
        raise RowInvalid([("$", f"is a {type(value).__name__}, not an object; write {{...}}")])
    try:
        # Text that was UTF-8 holds half a pair only where an escape spells it.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowInvalid(
            [("$", "holds half of a surrogate pair (\\ud800 to \\udfff); fix the escape")], rule="encoding"
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = [repr(name)[:60] for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        others = f" and {len(twice) - _SHOWN} others" if len(twice) > _SHOWN else ""
        raise RowInvalid([("$", f"names {', '.join(twice[:_SHOWN])}{others} twice; keep one")])
    return value


def _constant(name: str) -> Any:
    raise RowInvalid([("$", f"holds {name}, which is not JSON; write a number or null")])
