"""Whether a JSON value is valid under a JSON schema, in bounded time and without reading anything from elsewhere.

Patterns are RE2's: neither compiling nor matching one takes more than a bounded memory, and time in proportion to the
text. Python's own and `regex` write out counted repetitions, so that `a{100000000}` takes gigabytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import re2
from jsonschema import Draft202012Validator, FormatChecker, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from tunery.registry.errors import InvalidInput

__all__ = ["JsonValidity", "parse_json"]

MAX_SCHEMA = 64 * 1024
"""Bytes of a schema as JSON."""
MAX_REFERENCES = 10_000
"""References that are followed for one value; those of schemas that multiply them would take forever."""
MAX_SECONDS, MAX_TOTAL_SECONDS = 2.0, 60.0
"""Seconds of processor time that one value, and all values of a file or run, may take."""
MAX_TEXT = 32_768
"""Characters of a text that is matched with a pattern, which cannot be interrupted."""
_OPTIONS = re2.Options()
_OPTIONS.log_errors, _OPTIONS.max_mem = False, 2 * 2**20
_UNFIT = (re2.error, UnicodeEncodeError)
_FORMATS = FormatChecker(())
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
            Draft202012Validator.check_schema(schema, format_checker=_FORMATS)
        except SchemaError as error:
            raise InvalidInput(f"{param} is not a JSON schema: {error.message[:300]}", param=param) from error
        except RecursionError as error:
            raise InvalidInput(f"{param} is nested too deeply", param=param) from error
        self._budget, self._end, self._left = 0, 0.0, MAX_TOTAL_SECONDS
        checks = {"$ref": self._reference, "pattern": self._pattern, "uniqueItems": self._unique}
        kind = validators.extend(Draft202012Validator, checks)
        # An empty registry: a reference to elsewhere is not fetched.
        self._validator = kind(schema, registry=Registry())

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None; raise InvalidInput where that takes too long to say."""
        started = time.thread_time()
        self._budget, self._end = MAX_REFERENCES, started + min(MAX_SECONDS, self._left)
        try:
            self._check_time()
            error = next(self._validator.iter_errors(value), None)
        except Unresolvable as missing:
            raise InvalidInput(f"the schema refers to {missing.ref!r}, which is not within it") from missing
        except RecursionError as deep:
            raise InvalidInput("the schema refers to itself without end, or the value is nested too deeply") from deep
        finally:
            self._left -= time.thread_time() - started
        return None if error is None else f"{error.json_path}: {error.message[:300]}"

    def _reference(self, validator: Any, reference: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        self._budget -= 1
        if self._budget < 0:
            raise InvalidInput(f"the schema follows more than {MAX_REFERENCES} references for one value; simplify it")
        self._check_time()
        yield from Draft202012Validator.VALIDATORS["$ref"](validator, reference, instance, schema)

    def _pattern(self, validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if not isinstance(instance, str):
            return
        self._check_time()
        if len(instance) > MAX_TEXT:
            raise InvalidInput(
                f"a text of {len(instance)} characters is too long for a pattern; the limit is {MAX_TEXT}"
            )
        try:
            # RE2 reads UTF-8, which has no half of a surrogate pair.
            matches = _compile(pattern).search(instance.encode(errors="replace").decode())
        except _UNFIT as error:
            raise InvalidInput(f"{pattern[:80]!r} is not a pattern that is supported: {_why(error)}") from error
        if not matches:
            yield ValidationError(f"{instance[:80]!r} does not match {pattern[:80]!r}")

    def _unique(self, validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        """Compare the items' texts, as comparing each with each would take forever for many objects."""
        if wanted and isinstance(instance, list):
            self._check_time()
            if len({json.dumps(_plain(item), sort_keys=True) for item in instance}) < len(instance):
                yield ValidationError(f"{str(instance[:3])[:80]} … has an item twice")

    def _check_time(self) -> None:
        if time.thread_time() > self._end:
            raise InvalidInput(
                f"the schema takes more than {MAX_SECONDS:g} s for one value, or {MAX_TOTAL_SECONDS:g} s for all; "
                "simplify it"
            )


def _is_pattern(text: object) -> bool:
    """Whether a text is a pattern, for the schema of schemas; anything else is none of its business."""
    if isinstance(text, str):
        _compile(text)
    return True


_FORMATS.checks("regex", raises=_UNFIT)(_is_pattern)


def _compile(pattern: str) -> Any:
    return re2.compile(pattern, _OPTIONS)


def _plain(value: Any) -> Any:
    """A value in which equal numbers are written alike, as 1 and 1.0 are one value of JSON."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _why(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return (reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason))[:200]


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
