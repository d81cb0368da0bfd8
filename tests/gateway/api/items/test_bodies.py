"""Whatever body arrives, made of what clients send and of junk: an answer, or a 4xx that names a field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.api.conftest import Served
from tests.gateway.api.items.test_reading import ITEMS, JUNK

WORDS = st.sampled_from(["auto", "none", "required", "low", "text", "function", "json_schema", "look_up", "x"])
NAMES = st.sampled_from(["type", "name", "schema", "parameters", "strict", "effort", "format", "verbosity", "summary"])
THING: st.SearchStrategy[Any] = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers(-1, 9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=6,
)
TOOL = st.fixed_dictionaries(
    {"type": st.just("function"), "name": WORDS}, optional={"parameters": THING, "strict": THING}
)
BODY = st.fixed_dictionaries(
    {"model": st.just("tiny"), "input": st.just("Hi") | ITEMS},
    optional={
        "tools": st.lists(TOOL | THING, max_size=2),
        "tool_choice": WORDS | st.fixed_dictionaries({"type": st.just("function"), "name": WORDS}) | THING,
        "text": st.fixed_dictionaries({"format": THING}) | THING,
        "reasoning": THING,
        "include": THING,
        "instructions": st.sampled_from(["Be brief.", ""]) | THING,
        "previous_response_id": st.just("resp_none") | THING,
        "truncation": st.sampled_from(["auto", "disabled"]) | THING,
        "top_logprobs": st.integers(-1, 21),
        "metadata": THING,
        "store": st.booleans() | THING,
        "stream": st.booleans(),
        "stream_options": THING,
        "x": JUNK,
    },
)


def bodies(count: int) -> list[dict[str, Any]]:
    """What hypothesis makes, the same every time."""
    made: list[dict[str, Any]] = []

    @settings(
        max_examples=count, database=None, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(BODY)
    def collect(body: dict[str, Any]) -> None:
        made.append(body)

    collect()
    return made


@pytest.mark.slow
async def test_no_body_is_a_bug(served: Served) -> None:
    statuses = set()
    async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        for body in bodies(400):
            try:
                request = client.build_request("POST", "/v1/responses", json=body)
            except ValueError:  # a number or a surrogate that JSON does not have
                continue
            response = await client.send(request)
            statuses.add(response.status_code)
            if response.status_code != 200:
                error = response.json()["error"]
                assert response.status_code == 400, (body, error)
                assert error["param"], (body, error)
                assert len(error["message"]) < 1500, (body, error)
            elif body.get("stream"):
                assert response.text.count('"type":"response.completed"') == 1, (body, response.text)
    assert statuses == {200, 400}
