"""How references and compositions are written and read back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunery.registry.errors import InvalidInput
from tunery.registry.names import MAX_PARTS, MAX_WEIGHT, Part, Reference, parse_composition, parse_reference

words = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?", fullmatch=True)
adapters = st.builds("{}/{}".format, words, words)
references = st.one_of(
    st.builds(Reference, adapters),
    st.builds(Reference, adapters, number=st.integers(1, 10**6)),
    st.builds(Reference, adapters, alias=st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)),
)
weights = st.floats(-MAX_WEIGHT, MAX_WEIGHT, allow_nan=False).filter(lambda weight: weight != 0)
compositions = st.lists(
    st.builds(Part, references, weights), min_size=1, max_size=MAX_PARTS, unique_by=lambda part: part.reference
)


@given(references)
def test_a_reference_reads_back_as_itself(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@pytest.mark.slow
@given(compositions)
def test_a_composition_reads_back_as_itself(parts: list[Part]) -> None:
    assert parse_composition("+".join(map(str, parts))) == tuple(parts)


@given(st.text(alphabet="ab/@:+-.e0123456789 \u0663", max_size=40))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parts = parse_composition(text)
        assert parse_composition("+".join(map(str, parts))) == parts
        assert all(0 < abs(part.weight) <= MAX_WEIGHT for part in parts)


def test_weights_are_optional_and_one_by_default() -> None:
    assert parse_composition("acme/tone:0.5+acme/facts@3") == (
        Part(Reference("acme/tone"), 0.5),
        Part(Reference("acme/facts", number=3), 1.0),
    )
    assert parse_composition("acme/tone:-2.") == (Part(Reference("acme/tone"), -2.0),)


@pytest.mark.parametrize(
    "weight", ["", "0", "-0.0", "10.1", "nan", "inf", "1e999", "1e-999", "1_0", "0x1", " 1", "+1", "1:1", "9" * 5000]
)
def test_a_weight_that_cannot_be_is_refused_with_its_adapter(weight: str) -> None:
    with pytest.raises(InvalidInput, match="acme/tone") as caught:
        parse_composition(f"acme/facts+acme/tone:{weight}")
    assert caught.value.code in ("invalid_composition", "invalid_name")
    assert len(caught.value.message) < 300


def test_the_same_adapter_twice_and_too_many_are_refused() -> None:
    with pytest.raises(InvalidInput, match="acme/tone is in the composition twice"):
        parse_composition("acme/tone:1+acme/facts+acme/tone:2")
    with pytest.raises(InvalidInput, match="8 adapters"):
        parse_composition("+".join(f"acme/a{number}" for number in range(3 * MAX_PARTS)))


@pytest.mark.parametrize("digits", [18, 19, 5000])
def test_a_number_fits_where_it_is_kept_or_is_refused(digits: int) -> None:
    text = "acme/docs@" + "9" * digits
    if digits <= 18:
        assert parse_reference(text).number == 10**digits - 1
        return
    with pytest.raises(InvalidInput, match="no version number is that long") as caught:
        parse_reference(text)
    assert len(caught.value.message) < 100
