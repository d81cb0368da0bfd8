"""The rows of an evaluation: OpenAI's `{"item": {...}}`, or training rows, whose last answer is the reference.

Of a training row templates see `item.reference`, the answer; `item.input`, the text of the message before it; and
`item.messages`, all before it, which is also what a model is asked unless the run says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunery.plugins.data.read import FileBroken, Record, iter_records
from tunery.plugins.data.read.formats import InvalidRow
from tunery.plugins.data.read.row import parse_object, to_row
from tunery.plugins.evals.json_validity import JsonValidity
from tunery.plugins.evals.messages import MessageTemplate
from tunery.plugins.evals.template import FieldPath, parse_path
from tunery.plugins.hookspecs import FormatInfo
from tunery.registry.errors import InvalidData, InvalidInput

__all__ = ["Item", "Prompts", "read_items"]

MAX_ROWS = 10_000
MAX_BYTES = 32 * 2**20
"""Rows, and bytes of them as JSON, of one run."""
MAX_PROBLEMS = 20


class Item(msgspec.Struct, frozen=True):
    """A row: its number in the file, what templates see of it, and the messages and tools of a training row."""

    line: int
    fields: dict[str, Any]
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


def read_items(
    path: Path, *, formats: Mapping[str, FormatInfo], schema: JsonValidity | None = None, name: str | None = None
) -> list[Item]:
    """Read every row of a file; raise InvalidData that names every bad one, or that there are too many or none."""
    items: list[Item] = []
    problems: list[str] = []
    size, name = 0, name or path.name
    for number, raw in _records(path, name):
        size += len(raw)
        if len(items) >= MAX_ROWS or size > MAX_BYTES:
            raise InvalidData(
                f"{name} has more than {MAX_ROWS} rows or {MAX_BYTES >> 20} MiB; evaluate a part of it",
                code="too_many_rows",
            )
        try:
            item = _read(number, raw, list(formats.values()))
            if item and schema and (problem := schema.problem(item.fields)) is not None:
                problems.append(f"{name}:{number}: does not fit the item_schema: {problem}")
            items += [item] if item else []
        except InvalidRow as error:
            problems += error.problems(f"{name}:{number}")
        except InvalidInput as error:
            problems.append(f"{name}:{number}: {error.message}")
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InvalidData(f"{name} has rows that cannot be evaluated", problems=problems)
    if not items:
        raise InvalidData(f"{name} has no rows")
    return items


def _records(path: Path, name: str) -> Iterator[Record]:
    """The records of a file that is called `name` in messages, whatever it is called on the disk."""
    try:
        yield from iter_records(path)
    except FileBroken as error:
        raise InvalidData(error.under(name)) from error


class Prompts:
    """What a model is asked for each row: a template filled in, messages within the row, or those of a training row.

    `raw` is OpenAI's `input_messages`. Raises InvalidInput for one that is neither.
    """

    def __init__(self, raw: dict[str, Any] | None, *, param: str = "data_source.input_messages") -> None:
        self._template: MessageTemplate | None = None
        self._path: FieldPath | None = None
        kind = None if raw is None else raw.get("type")
        if raw is not None and kind == "template" and isinstance(raw.get("template"), list):
            self._template = MessageTemplate(raw["template"], param=f"{param}.template")
            # What a model is asked cannot depend on what it answers.
            if any(path.root == "sample" for each in self._template.templates for path in each.paths):
                raise InvalidInput(f"{param}.template may not use sample", code="invalid_template", param=param)
        elif raw is not None and kind == "item_reference" and isinstance(raw.get("item_reference"), str):
            self._path = parse_path(raw["item_reference"], param=f"{param}.item_reference")
        elif raw is not None:
            raise InvalidInput(
                f'{param} is {{"type": "template", "template": [messages]}} or {{"type": "item_reference", '
                '"item_reference": "item.NAME"}}',
                param=param,
            )

    def messages(self, item: Item) -> list[dict[str, Any]]:
        """The conversation for a row; raise InvalidInput naming a field that the row does not have."""
        context = {"item": item.fields}
        if self._template is not None:
            return self._template.fill(context)
        if self._path is not None:
            return _messages(self._path.look_up(context), str(self._path))
        if item.messages is None:
            raise InvalidInput("has no messages; say with input_messages what to ask for it")
        return item.messages


def _read(number: int, raw: bytes, formats: Sequence[FormatInfo]) -> Item | None:
    """The item in a record, None where it is blank."""
    value = parse_object(number, raw)
    if value is None:
        return None
    if "item" not in value or "messages" in value:
        return _training_row(number, value, formats)
    if not isinstance(value["item"], dict):
        raise InvalidInput("item must be an object")
    more = sorted(key for key, each in value.items() if key != "item" and each is not None)
    if more:
        raise InvalidInput(f"has {', '.join(more)[:80]} beside item, which is not supported: models are sampled here")
    return Item(number, value["item"])


def _training_row(number: int, value: dict[str, Any], formats: Sequence[FormatInfo]) -> Item:
    row = to_row(number, value, formats)
    *prompt, answer = row.messages
    if answer["role"] != "assistant" or answer.get("tool_calls") or not answer.get("content"):
        raise InvalidInput("must end with an answer that is text, to compare others with")
    if not prompt:
        raise InvalidInput("has nothing before its answer")
    fields = {"reference": answer["content"], "input": prompt[-1].get("content", ""), "messages": prompt}
    return Item(number, fields, prompt, row.tools)


def _messages(value: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise InvalidInput(f"{path} is not a list of messages")
    return value
