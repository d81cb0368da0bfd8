"""Values as people write them, by the type that they are for; what cannot be meant names the
parameter and what it may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from tunery.registry.errors import InvalidInput
from tunery.registry.values import about, describe_fields, read_value

Count = Annotated[int, Meta(ge=1)]
Names = Annotated[tuple[str, ...] | Literal["all-linear"], Meta(description="layers")]


class Nested(msgspec.Struct):
    """A parameter with parts."""

    rank: Count
    layers: list[str] = []


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("q_proj,v_proj", Names, ("q_proj", "v_proj")),
        (" q_proj , v_proj ", Names, ("q_proj", "v_proj")),
        ('["q_proj", "v_proj"]', Names, ("q_proj", "v_proj")),
        ("q_proj", Names, ("q_proj",)),
        ("all-linear", Names, "all-linear"),
        ("1,2", list[int], [1, 2]),
        ("", tuple[str, ...], ()),
        ("none", int | None, None),
        ("null", list[str] | None, None),
        ("3", int | None, 3),
        ("none", str, "none"),
        ("a,b", str | None, "a,b"),
        ("true", bool, True),
        ("False", bool, False),
        ("a=1,b=2", dict[str, int], {"a": 1, "b": 2}),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ('{"rank": 4, "layers": ["q"]}', Nested, Nested(4, ["q"])),
        ("2e-4", float, 2e-4),
        (["q"], Names, ("q",)),
    ],
)
def test_text_is_read_by_type(text: Any, kind: Any, value: Any) -> None:
    assert read_value("x", text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("zero", Count, "x='zero': x is a whole number, at least 1"),
        ("0", Count, "x='0': x is a whole number, at least 1"),
        ("perhaps", bool, "x='perhaps': x is true or false"),
        ("1,two", list[int], "x='1,two': x is a list, written a,b or as JSON"),
        ("a", dict[str, int], "x='a': x is a table, written a=1,b=2 or as JSON"),
        ('{"rank": 0}', Nested, "x is a JSON object"),
        ("cosin", Literal["cosine", "linear"], "x='cosin': did you mean 'cosine'?"),
        ("many", int | None, "x='many': x is a whole number or none"),
    ],
)
def test_what_cannot_be_meant_names_parameter_and_type(text: str, kind: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_value("x", text, kind)
    assert message in caught.value.message
    assert caught.value.param == "x"


def test_a_field_is_described_by_the_class_that_says_most_of_it() -> None:
    class Parent(msgspec.Struct):
        rank: Annotated[Count, about("rank of the pairs")] = 8
        layers: Annotated[list[str], about("layers that get one")] = []

    class Child(Parent):
        rank: Count = 4

    rank, layers = describe_fields(Child)
    assert (rank.name, rank.type, rank.default, rank.description) == (
        "rank",
        "a whole number, at least 1",
        4,
        "rank of the pairs",
    )
    assert (layers.default, layers.description) == ([], "layers that get one")
