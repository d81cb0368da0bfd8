"""Prepares JSON schemas for llguidance: takes annotations out, closes objects, and refuses a schema that only an
endless text satisfies.

JSON Schema (draft 2020-12, and what draft 7 spells differently) lets a validator ignore a `format` that it does not
know; llguidance refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

__all__ = ["FORMATS", "prepare"]

FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
"""Formats that are enforced; any other one is an annotation."""

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_OF_ONE = (
    *("items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains"),
    *("propertyNames", "not", "if", "then", "else"),
)
_COMBINING = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "$dynamicRef", "unevaluatedProperties"}
)
"""Keywords with which an object's other properties matter to several schemas."""
_ALTERNATIVES = frozenset({"properties", "anyOf", "$ref"})
"""Keywords with which they do where there are two of them."""
_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "propertyNames", "minProperties", "dependentRequired", "dependencies"}
)
"""Keywords that are about properties that are not listed."""
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_ROUNDS = 32

Schema = dict[str, Any]


def prepare(schema: Schema, *, lenient: bool = False) -> Schema:
    """The schema as llguidance accepts it; raises ValueError when no finite text satisfies it.

    A pattern with look-around, which llguidance does not support, is dropped where a known format stands beside it (as
    zod writes them). With `lenient` it is dropped everywhere, and unsupported keywords are ignored instead of refused.
    An object has only the properties that are listed unless the schema allows others by name, as a model may otherwise
    add some forever.
    """
    closes = not _combines(schema)

    def readable(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        part = _map_subschemas(part, readable)
        enforced = part.get("format") in FORMATS if isinstance(part.get("format"), str) else False
        if not enforced:
            part.pop("format", None)
        if (enforced or lenient) and _LOOK_AROUND.search(str(part.get("pattern"))):
            del part["pattern"]
        return _closed(part) if closes else part

    if not _Finite(schema).holds():
        raise ValueError("only an endless text satisfies it: a required part of it refers back to it")
    prepared: Schema = readable(schema)
    options = prepared.get("x-guidance")
    if lenient:
        prepared["x-guidance"] = {**(options if isinstance(options, dict) else {}), "lenient": True}
    return prepared


def _map_subschemas(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """A copy with `change` applied to every subschema; values such as a `const` are left as they are."""
    changed = dict(schema)
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, dict):
            changed[key] = {name: change(part) for name, part in value.items()}
        elif key in _OF_LISTS and isinstance(value, list):
            changed[key] = [change(part) for part in value]
        elif key in _OF_ONE:
            changed[key] = change(value)
    return changed


def _combines(schema: Any) -> bool:
    """Whether several schemas may describe one object, so that none of them may be closed by itself."""
    if not isinstance(schema, dict):
        return False
    if _COMBINING.intersection(schema) or len(_ALTERNATIVES.intersection(schema)) > 1:
        return True
    found: list[bool] = []
    _map_subschemas(schema, lambda part: found.append(_combines(part)))
    return any(found)


def _closed(schema: Schema) -> Schema:
    """An object's schema without properties that it does not list."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties or _OPEN.intersection(schema):
        return schema
    if not properties.keys() >= {name for name in _list(schema.get("required")) if isinstance(name, str)}:
        return schema
    return {**schema, "additionalProperties": False}


class _Finite:
    """Decides whether a finite text can satisfy a schema, as far as its references matter.

    Computes a least fixed point: a reference is finite once its target is, given the references found finite so far.
    Each round looks at the target of every reference once.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._references: list[str] = []
        self._seen: set[str] = set()
        self._finite: set[str] = set()

    def holds(self) -> bool:
        """Whether the root is finite; also true when _ROUNDS rounds do not decide it."""
        for _ in range(_ROUNDS):
            before = len(self._references), len(self._finite)
            if self._schema(self._root):
                return True
            self._round()
            if before == (len(self._references), len(self._finite)):
                return False
        return True

    def _round(self) -> None:
        """One round, the latest references first: earlier ones depend on what they lead to."""
        pending = list(self._references)
        while pending:
            reference, count = pending.pop(), len(self._references)
            if reference not in self._finite and self._schema(_target(self._root, reference)):
                self._finite.add(reference)
            pending += self._references[count:]

    def _schema(self, schema: Any) -> bool:
        if not isinstance(schema, dict):
            return True
        if isinstance(reference := schema.get("$ref"), str) and not self._reference(reference):
            return False
        if not all(map(self._schema, _list(schema.get("allOf")))):
            return False
        choices = [_list(schema[key]) for key in ("anyOf", "oneOf") if key in schema]
        if not all(any(map(self._schema, parts)) for parts in choices if parts):
            return False
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if "const" in schema or "enum" in schema or not set(map(str, kinds)) <= {"object", "array"}:
            return True
        return any(self._object(schema) if kind == "object" else self._array(schema) for kind in kinds)

    def _reference(self, reference: str) -> bool:
        if reference not in self._seen:
            self._seen.add(reference)
            self._references.append(reference)
        return reference in self._finite

    def _object(self, schema: Schema) -> bool:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        others = schema.get("additionalProperties")
        needed = (name for name in _list(schema.get("required")) if isinstance(name, str))
        return all(self._schema(properties.get(name, others)) for name in needed)

    def _array(self, schema: Schema) -> bool:
        least = schema.get("minItems")
        least = int(least) if isinstance(least, int | float) else 0
        items = schema.get("items")
        first = _list(schema.get("prefixItems") or items)
        rest = items if isinstance(items, dict) else None
        return all(map(self._schema, first[:least])) and (least <= len(first) or self._schema(rest))


def _target(root: Schema, reference: str) -> Any:
    """What a JSON pointer (RFC 6901) in the schema points to; None for other references, and for a
    pointer to nothing."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    target: Any = root
    for step in reference.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict):
            target = target.get(key)
        elif isinstance(target, list) and key.isdecimal() and len(key) < 9 and int(key) < len(target):
            target = target[int(key)]
        else:
            return None
    return target


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
