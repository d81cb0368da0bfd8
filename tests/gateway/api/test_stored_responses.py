"""Responses that are stored: read, continued, listed and deleted, and found by no one once they are gone."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.gateway.api.conftest import REPLY, Served
from tunery.gateway.api.items import conversation
from tunery.registry.registry import Registry

PATH = "/v1/responses"


def prompt(served: Served) -> str:
    return served.gateway.renderer.decode(served.engine.requests[-1].prompt, skip_special=False)


async def test_nothing_is_stored_unless_asked(served: Served) -> None:
    responses = served.client.responses
    for extra in ({}, {"store": False}):
        answer = await responses.create(model="tiny", input="Hi", **extra)  # type: ignore[call-overload]
        assert answer.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError, match=f"Response with id '{answer.id}' not found."):
            await responses.retrieve(answer.id)
        with pytest.raises(
            openai.BadRequestError, match=f"Previous response with id '{answer.id}' not found."
        ) as raised:
            await responses.create(model="tiny", input="Hi", previous_response_id=answer.id)
        assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on_from_a_stored_response(served: Served, stream: bool) -> None:
    responses = served.client.responses
    common: dict[str, Any] = {"model": "tiny", "store": True, "stream": stream}

    async def create(**body: Any) -> Any:
        made = await responses.create(**common, **body)
        return [event async for event in made][-1].response if stream else made

    first = await create(input="One", instructions="Be brief.")
    assert (await responses.retrieve(first.id)).to_dict() == first.to_dict()
    second = await create(input=[{"role": "user", "content": "Two"}], previous_response_id=first.id)
    assert second.previous_response_id == first.id
    whole = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": REPLY},
        {"role": "user", "content": "Two"},
    ]
    assert list(served.engine.requests[-1].prompt) == served.gateway.renderer.prompt_ids(whole)
    # A response has its whole conversation, so those before it may go.
    await responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await responses.delete(first.id)
    third = await create(input="Three", previous_response_id=second.id)
    whole += [{"role": "assistant", "content": REPLY}, {"role": "user", "content": "Three"}]
    assert list(served.engine.requests[-1].prompt) == served.gateway.renderer.prompt_ids(whole)
    items: list[Any] = [item async for item in responses.input_items.list(third.id, order="asc", limit=2)]
    assert [item.content[0].text for item in items] == [message["content"] for message in whole]
    assert [item.role for item in items] == [message["role"] for message in whole]
    newest = await responses.input_items.list(third.id)
    assert (newest.data[0], newest.has_more) == (items[-1], False)
    assert len({item.id for item in items}) == 5


async def test_log_probabilities_are_not_stored(served: Served) -> None:
    answer = await served.client.responses.create(model="tiny", input="Hi", store=True, top_logprobs=20)
    sent, stored = answer.to_dict(), (await served.client.responses.retrieve(answer.id)).to_dict()
    part: Any = sent["output"][0]["content"][0]  # type: ignore[index]
    assert part["logprobs"]
    part["logprobs"] = []
    assert stored == sent


async def test_calls_of_a_stored_response_are_answered(served: Served) -> None:
    served.says('<tool_call>{"name": "look_up", "arguments": {}}</tool_call>')
    tools: Any = [{"type": "function", "name": "look_up", "parameters": None, "strict": None}]
    first = await served.client.responses.create(model="tiny", input="Hi", tools=tools, store=True)
    call: Any = first.output[0]
    output: Any = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": [{"type": "input_text", "text": "x"}],
    }
    await served.client.responses.create(model="tiny", input=[output], tools=tools, previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="No tool call found for function call output"):
        await served.client.responses.create(model="tiny", input=[output], tools=tools)


async def test_references_are_to_items_of_stored_responses(served: Served) -> None:
    responses = served.client.responses
    first = await responses.create(model="tiny", input="One", store=True)
    asked = (await responses.input_items.list(first.id)).data[0]
    references: Any = [{"type": "item_reference", "id": asked.id}, {"id": first.output[0].id}]
    await responses.create(model="tiny", input=[*references, {"role": "user", "content": "Two"}])
    referred = prompt(served)
    await responses.create(model="tiny", input="Two", previous_response_id=first.id)
    assert prompt(served) == referred
    await responses.delete(first.id)
    for name in (asked.id, "msg_1", 7, None, "x" * 10**6):
        response = await served.post(PATH, {"model": "tiny", "input": [{"type": "item_reference", "id": name}]})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "item_not_found", "input")
        assert len(error["message"]) < 500
    many = [{"type": "item_reference", "id": f"msg_{at:032x}_0"} for at in range(65)]
    error = (await served.post(PATH, {"model": "tiny", "input": many})).json()["error"]
    assert "the limit is 64" in error["message"]


async def test_a_conversation_that_is_too_large_to_store_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_STORED", 300)
    body = {"model": "tiny", "input": "word " * 60, "store": True}
    response = await served.post(PATH, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "store")
    assert served.engine.requests == []
    assert (await served.post(PATH, body | {"store": False})).status_code == 200


async def test_stored_responses_are_in_the_registry_for_their_days(served: Served) -> None:
    answer = await served.client.responses.create(model="tiny", input="Hi", store=True)
    with Registry.open(served.gateway.registry.home) as other:
        stored = other.responses.get(answer.id, tenant="default")
        assert stored.expires_at - stored.created_at == 30 * 86_400
        other.responses.delete(answer.id, tenant="default")
    with pytest.raises(openai.NotFoundError):
        await served.client.responses.retrieve(answer.id)


@pytest.mark.slow
async def test_what_does_not_exist_or_cannot_be_is_refused(served: Served) -> None:
    answer = await served.client.responses.create(model="tiny", input="Hi", store=True)
    found = f"{PATH}/{answer.id}"
    wanted = [
        (f"{PATH}/resp_none", 404), (f"{PATH}/{'x' * 200}", 400), (f"{found}?stream=true", 400), (f"{found}?stream=false", 200),
        (f"{found}/input_items?limit=0", 400), (f"{found}/input_items?limit=101", 400), (f"{found}/input_items?order=up", 400),
        (f"{found}/input_items?after=msg_none", 404), (f"{PATH}/resp_none/input_items", 404), (f"{found}/input_items", 200),
    ]  # fmt: skip
    async with httpx.AsyncClient(base_url=served.url) as client:
        for path, status in wanted:
            response = await client.get(path)
            assert response.status_code == status, (path, response.text)
        listed = (await client.get(f"{found}/input_items")).json()
        empty = (await client.get(f"{found}/input_items?after={listed['last_id']}")).json()
    assert (empty["data"], empty["has_more"], empty["first_id"]) == ([], False, None)
