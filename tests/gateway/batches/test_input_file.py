"""Input files: every request is found where it is, and whatever else is in a file is an error with its line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.engine.hypothesis_settings import often
from tunery.gateway.batches import input_file
from tunery.gateway.batches.input_file import BatchInput, read_input, read_line

URL = "/v1/embeddings"


def request(custom_id: str, /, **more: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": "m"}} | more).encode()


def read(tmp_path: Path, *lines: bytes, end: bytes = b"\n") -> BatchInput:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\n".join(lines) + end)
    return read_input(path, URL)


def codes(found: BatchInput) -> list[tuple[int | None, str, str | None]]:
    return [(error.line, error.code, error.param) for error in found.errors]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n \n\n"])
def test_lines_are_found_again_whatever_is_around_them(tmp_path: Path, end: bytes) -> None:
    found = read(tmp_path, b"", request("a"), b"  ", request("ä", body={"model": "m", "x": "€"}) + b"\r", end=end)
    assert (found.errors, found.model) == ([], "m")
    assert [place.number for place in found.places] == [2, 4]
    lines = [read_line(tmp_path / "requests.jsonl", place) for place in found.places]
    assert [line.custom_id for line in lines] == ["a", "ä"]
    assert json.loads(bytes(lines[1].body)) == {"model": "m", "x": "€"}


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": ""}, "invalid_value", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_value", "custom_id"),
        ({"custom_id": 1}, "invalid_value", "custom_id"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"method": "post"}, "invalid_method", "method"),
        ({"url": None}, "missing_required_parameter", "url"),
        ({"url": 1}, "invalid_value", "url"),
        ({"url": "/v1/chat/completions"}, "invalid_url", "url"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"body": []}, "invalid_value", "body"),
        ({"body": "{}"}, "invalid_value", "body"),
    ],
)
def test_each_field_has_its_error(tmp_path: Path, change: dict[str, Any], code: str, param: str) -> None:
    assert codes(read(tmp_path, request("good"), request("a", **change))) == [(2, code, param)]


def test_a_file_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codes(read(tmp_path)) == [(None, "empty_file", None)]
    monkeypatch.setattr(input_file, "MAX_REQUESTS", 3)
    assert codes(read(tmp_path, *(request(str(number)) for number in range(3)))) == []
    assert codes(read(tmp_path, *(request(str(number)) for number in range(4)))) == [(None, "too_many_tasks", None)]
    monkeypatch.setattr(input_file, "MAX_ERRORS", 2)
    assert codes(read(tmp_path, b"x", b"y", b"z")) == [(1, "invalid_json_line", None), (2, "invalid_json_line", None)]
    monkeypatch.setattr(input_file, "MAX_LINE", 100)
    long = request("long", body={"model": "m", "x": "x" * 500})
    assert codes(read(tmp_path, request("a"), long, b"x")) == [
        (2, "invalid_json_line", None),
        (3, "invalid_json_line", None),
    ]
    monkeypatch.setattr(input_file, "MAX_FILE", 10)
    assert codes(read(tmp_path, request("a"))) == [(None, "file_too_large", None)]


def test_a_model_is_named_where_all_requests_name_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, request("a"), request("b")).model == "m"
    assert read(tmp_path, request("a"), request("b", body={"model": "n"})).model is None
    assert read(tmp_path, request("a"), request("b", body={})).model is None


@often(60)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
            st.sampled_from([request("a"), request("b"), request("c")[:-1], b"[" * 5000, b'{"body": ' * 3000, b"1"]),
        ),
        max_size=12,
    )
)
def test_any_bytes_are_requests_or_errors_line_by_line(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        path.write_bytes(b"\n".join(lines))
        found = read_input(path, URL)
        ids = [read_line(path, place).custom_id for place in found.places]
    assert len(set(ids)) == len(ids)
    numbers = [place.number for place in found.places] + [error.line for error in found.errors if error.line]
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    assert sorted(numbers) == filled
