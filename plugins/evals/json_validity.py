"""Whether a JSON value is valid under a JSON schema, in bounded time and without reading anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import regex
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from tunery.registry.errors import InvalidInput

__all__ = ["JsonValidity", "parse_json"]

MAX_SCHEMA = 64 * 1024
"""Bytes of a schema as JSON."""
MAX_REFERENCES = 10_000
"""References that are followed for one value; those of schemas that multiply them would take forever."""
PATTERN_SECONDS = 1.0
MAX_DIGITS = 4300
"""Digits of a number, which is also the most that Python reads."""
_REFUSED = ("patternProperties", "$dynamicRef")


def parse_json(text: str) -> Any:
    """A text's JSON value; raise ValueError for anything that is not JSON, NaN and Infinity included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class JsonValidity:
    """A schema, checked once; `problem` says what is wrong with a value. Raises InvalidInput for a schema that is not
    valid or not supported."""

    def __init__(self, schema: dict[str, Any], *, param: str) -> None:
        try:
            size = len(json.dumps(schema))
            if size > MAX_SCHEMA:
                raise InvalidInput(f"{param} has {size} bytes; the limit is {MAX_SCHEMA}", param=param)
            _check_keywords(schema, param)
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise InvalidInput(f"{param} is not a JSON schema: {error.message[:300]}", param=param) from error
        except RecursionError as error:
            raise InvalidInput(f"{param} is nested too deeply", param=param) from error
        self._budget = 0
        kind = validators.extend(Draft202012Validator, {"$ref": self._reference, "pattern": _pattern})
        # An empty registry: a reference to elsewhere is not fetched.
        self._validator = kind(schema, registry=Registry())

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None; raise InvalidInput where that takes too long to say."""
        self._budget = MAX_REFERENCES
        try:
            error = next(self._validator.iter_errors(value), None)
        except Unresolvable as missing:
            raise InvalidInput(f"the schema refers to {missing.ref!r}, which is not within it") from missing
        except RecursionError as deep:
            raise InvalidInput("the schema refers to itself without end, or the value is nested too deeply") from deep
        return None if error is None else f"{error.json_path}: {error.message[:300]}"

    def _reference(self, validator: Any, reference: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        self._budget -= 1
        if self._budget < 0:
            raise InvalidInput(f"the schema follows more than {MAX_REFERENCES} references for one value; simplify it")
        yield from Draft202012Validator.VALIDATORS["$ref"](validator, reference, instance, schema)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str):
        return
    try:
        # Concurrent: other threads go on meanwhile.
        if not regex.compile(pattern).search(instance, timeout=PATTERN_SECONDS, concurrent=True):
            yield ValidationError(f"{instance[:80]!r} does not match {pattern[:80]!r}")
    except TimeoutError:
        raise InvalidInput(f"the pattern {pattern[:80]!r} took too long; simplify it") from None
    except regex.error as error:
        raise InvalidInput(f"{pattern[:80]!r} is not a regular expression: {error}") from error


def _check_keywords(schema: Any, param: str) -> None:
    if isinstance(schema, dict):
        for name in _REFUSED:
            if name in schema:
                raise InvalidInput(f"{param}: {name} is not supported", code="unsupported_parameter", param=param)
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _check_keywords(value, param)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
