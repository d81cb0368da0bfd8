"""Values of settings and parameters: read one into the type that it has, and describe that type and
what the value is for.

Text is read by type: lists as `a,b` or JSON, tables as `a=1,b=2` or JSON, booleans as true or false, null as none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput, near

__all__ = ["FieldDescription", "about", "describe_fields", "read_value", "type_text"]

_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "none"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def about(description: str) -> Meta:
    """An annotation that says what a field is for: `rank: Annotated[int, about("rank of the adapter")]`."""
    return Meta(description=description)


class FieldDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A setting or parameter for people: its type in words, its default, and what it is for."""

    name: str
    type: str
    default: Any
    description: str


def describe_fields(kind: type[msgspec.Struct]) -> list[FieldDescription]:
    """Describe every field of a struct whose fields all have defaults."""
    return [
        FieldDescription(
            name=field.name,
            type=type_text(field.type),
            default=msgspec.to_builtins(
                field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            ),
            description=_description(kind, field.name),
        )
        for field in msgspec.structs.fields(kind)
    ]


def _description(kind: type[msgspec.Struct], name: str) -> str:
    """What the class, or one that it inherits from, says that a field is for."""
    parents = [each for each in kind.__mro__ if issubclass(each, msgspec.Struct) and each is not msgspec.Struct]
    types = [field.type for each in parents for field in msgspec.structs.fields(each) if field.name == name]
    notes = [note for type_ in types for note in reversed(getattr(type_, "__metadata__", ()))]
    return next((note.description for note in notes if getattr(note, "description", None)), "")


def read_value(name: str, value: Any, kind: Any) -> Any:
    """`value` as a `kind`; raise InvalidInput saying what `name` may be."""
    try:
        read = msgspec.convert(_spelled_out(value, kind) if isinstance(value, str) else value, kind, strict=False)
        if isinstance(read, float) and not math.isfinite(read):
            raise msgspec.ValidationError("not finite")
        return read
    except msgspec.ValidationError as error:
        plain, _ = _without_bounds(kind)
        literal = get_origin(plain) is Literal
        wanted = near(str(value), map(str, get_args(plain))) if literal else f"{name} is {type_text(kind)}"
        raise InvalidInput(f"{name}={value!r}: {wanted}", param=name) from error


def type_text(kind: Any) -> str:
    """What a value of this type is, in words: `a whole number, at least 1`."""
    plain, bounds = _without_bounds(kind)
    limits = "".join(
        f", {_BOUNDS[bound]} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for bound, limit in bounds.items()
    )
    if get_origin(plain) is Literal:
        return " or ".join(map(str, get_args(plain)))
    members = list(_members(plain))
    if len(members) > 1:
        return " or ".join(type_text(member) for member in members)
    if get_origin(plain) in (list, tuple, set):
        return "a list, written a,b or as JSON" + limits
    if get_origin(plain) is dict or plain is dict:
        return "a table, written a=1,b=2 or as JSON" + limits
    return _PLAIN.get(plain, "a JSON object") + limits


def _spelled_out(text: str, kind: Any) -> Any:
    """What `text` writes down, for the first member of `kind` that can be written so."""
    plain, _ = _without_bounds(kind)
    members = [_without_bounds(member)[0] for member in _members(plain)]
    origins = {get_origin(member) or member for member in members}
    if any(get_origin(member) is Literal and text in map(str, get_args(member)) for member in members):
        return text
    if NoneType in members and text.strip().lower() in ("none", "null"):
        return None
    if str in members:
        return text
    structured = origins & {list, tuple, set, dict} or any(
        isinstance(m, type) and issubclass(m, msgspec.Struct) for m in members
    )
    if structured and text.lstrip()[:1] in ("[", "{"):
        return _json(text)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if dict in origins and all("=" in word for word in words):
        return {key.strip(): value.strip() for key, _, value in (word.partition("=") for word in words)}
    return words if origins & {list, tuple, set} else text


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union, or the one there is."""
    yield from get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _without_bounds(kind: Any) -> tuple[Any, dict[str, float]]:
    """A type without its annotations, and the bounds that those set."""
    bounds: dict[str, float] = {}
    while get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        for note in notes:
            bounds |= {name: limit for name in _BOUNDS if (limit := getattr(note, name, None)) is not None}
    return kind, bounds
