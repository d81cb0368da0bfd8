"""Fill `{{item.field}}` and `{{sample.output_text}}` into texts: plain substitution, without any expression language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tunery.registry.errors import InvalidInput, near

__all__ = ["SAMPLE_FIELDS", "FieldPath", "NotJson", "Template", "parse_path", "parse_template"]

SAMPLE_FIELDS = ("output_text", "output_json")
"""What templates may say of an answer: its text, or what the text is as JSON."""

_FIELD = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*(item|sample)((?:\.[^\W\d][\w-]*|\[\d{1,9}\])+)\s*")
_KEY = re.compile(r"\.([^\W\d][\w-]*)|\[(\d+)\]")


class NotJson(InvalidInput):
    """A template asks for a part of the answer that the answer does not have, or the answer is not JSON."""

    code = "answer_not_json"


class FieldPath(msgspec.Struct, frozen=True):
    """A path such as `item.answer.parts[0]`; `keys` are names and indices below `root`."""

    root: str
    keys: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.root + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.keys)

    def look_up(self, context: Mapping[str, Any]) -> Any:
        """The value there; raise InvalidInput naming what does not exist, NotJson where the answer lacks it."""
        value: Any = context[self.root]
        for depth, key in enumerate(self.keys):
            try:
                value = _step(value, key)
            except LookupError:
                raise self._missing(depth, value) from None
        return value

    def _missing(self, depth: int, parent: Any) -> InvalidInput:
        shown = FieldPath(self.root, self.keys[: depth + 1])
        if self.root == "sample":
            where = "is not valid JSON" if depth == 0 else f"has no {shown}"
            return NotJson(f"the answer {where}")
        known = near(str(self.keys[depth]), map(str, parent)) if isinstance(parent, dict) else "it is not an object"
        return InvalidInput(f"{{{{{self}}}}}: there is no {shown}; {known}", code="unknown_field")


class Template(msgspec.Struct, frozen=True):
    """A text with places to fill in."""

    parts: tuple[str | FieldPath, ...]

    @property
    def paths(self) -> Iterator[FieldPath]:
        """The places, in order."""
        return (part for part in self.parts if isinstance(part, FieldPath))

    def fill(self, context: Mapping[str, Any]) -> str:
        """The text with every value in its place: texts as they are, anything else as JSON. Raises as look_up."""
        return "".join(part if isinstance(part, str) else _text(part.look_up(context)) for part in self.parts)


def parse_template(text: str, *, param: str) -> Template:
    """Read a template; raise InvalidInput (invalid_template) naming a place that is no path of item or sample."""
    parts: list[str | FieldPath] = []
    end = 0
    for match in _FIELD.finditer(text):
        parts += [text[end : match.start()]] if match.start() > end else []
        parts.append(parse_path(match[1], param=param))
        end = match.end()
    if "{{" in text[end:]:
        raise InvalidInput(f"{param}: {{{{ is not closed by }}}}", code="invalid_template", param=param)
    return Template((*parts, text[end:]) if end < len(text) else tuple(parts))


def parse_path(text: str, *, param: str) -> FieldPath:
    """Read what stands between braces; raise InvalidInput (invalid_template)."""
    match = _PATH.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{param}: {{{{{text[:80]}}}}} is not a field; write {{{{item.NAME}}}} or {{{{sample.output_text}}}}: values "
            "are filled in, nothing is evaluated",
            code="invalid_template",
            param=param,
        )
    keys = tuple(name if name else int(index) for name, index in _KEY.findall(match[2]))
    path = FieldPath(match[1], keys)
    if path.root == "sample" and keys[0] not in SAMPLE_FIELDS:
        raise InvalidInput(
            f"{param}: there is no {path}; of an answer there are {' and '.join(SAMPLE_FIELDS)}",
            code="invalid_template",
            param=param,
        )
    return path


def _step(value: Any, key: str | int) -> Any:
    if isinstance(value, Mapping) if isinstance(key, str) else isinstance(value, list):
        return value[key]
    raise LookupError(key)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
