"""The conversation of a request: what it sends, after what a stored response has; and storing a response with it.

A stored response holds its whole conversation, so it can be continued when earlier ones have been deleted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tunery.gateway.api.items.reading import Item, read_items, referenced
from tunery.gateway.api.request.chat import MAX_MESSAGES
from tunery.gateway.api.schemas.items import OutputItem, OutputMessage, ResponseObject, ResponseRequest
from tunery.gateway.api.state import Gateway
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.errors import InvalidInput
from tunery.registry.records import StoredResponse

__all__ = ["Conversation", "read_conversation", "saver"]

MAX_STORED = 2**20
"""Bytes of a conversation and its request that are stored with a response; the context bounds its output."""
MAX_REFERRED = 64
"""Responses that the items of one request may refer to."""
MAX_ID = 100
"""Characters of an id."""
SECONDS_PER_DAY = 86_400

_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})_i?\d+")
"""The id of an item names the response that it is part of."""


class Conversation(msgspec.Struct, frozen=True):
    """The items of a conversation, and about how many bytes they are."""

    items: list[Item]
    size: int


async def read_conversation(
    data: ResponseRequest, *, gateway: Gateway, principal: Principal, body_size: int
) -> Conversation:
    """The items of `previous_response_id`'s conversation and those of `input`.

    Raises InvalidInput naming the field that is wrong, previous_response_not_found and item_not_found among them.
    """
    if isinstance(data.input, list) and len(data.input) > MAX_MESSAGES:
        raise InvalidInput(f"input has {len(data.input)} items; the limit is {MAX_MESSAGES}", param="input")
    earlier, earlier_size = await _earlier(data.previous_response_id, gateway, principal)
    found, size = await _referred(data.input, gateway, principal), earlier_size + body_size
    if data.store and size > MAX_STORED:
        raise InvalidInput(
            f"the conversation is {size} bytes, and a response is stored with up to {MAX_STORED}; send store: false",
            param="store",
        )

    def read(check_wanted: Callable[[], None]) -> Conversation:
        items = [*earlier, *read_items(data.input, earlier=earlier, found=found, check_wanted=check_wanted)]
        if not items and not data.instructions:
            raise InvalidInput("input has no items; send a message", param="input")
        return Conversation(items, size)

    return await gateway.offload(size, read)


def saver(
    data: ResponseRequest, items: list[Item], *, gateway: Gateway, principal: Principal
) -> Callable[[ResponseObject], Awaitable[None]] | None:
    """What stores the response to `data`, if it is to be stored: without log-probabilities, whose size has no bound
    in the conversation's.
    """
    if not data.store:
        return None

    async def save(response: ResponseObject) -> None:
        await asyncio.to_thread(
            gateway.registry.responses.add,
            response.id,
            tenant=principal.tenant,
            body=msgspec.to_builtins(msgspec.structs.replace(response, output=_unscored(response.output))),
            items=_numbered(items, response.id),
            keep_seconds=gateway.settings.response_days * SECONDS_PER_DAY,
        )

    return save


async def _earlier(response_id: str | None, gateway: Gateway, principal: Principal) -> tuple[list[Item], int]:
    """The conversation that a stored response ends, and about how many bytes it is."""
    if response_id is None:
        return [], 0
    stored = await _find({response_id} if len(response_id) <= MAX_ID else set(), gateway, principal)
    if response_id not in stored:
        raise InvalidInput(
            f"Previous response with id '{response_id[:MAX_ID]}' not found. Responses are kept only with store: true; "
            "send the whole conversation as input",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    items = _items_of(stored[response_id])
    return items, await asyncio.to_thread(lambda: len(msgspec.json.encode(items)))


async def _referred(raw: str | list[Any], gateway: Gateway, principal: Principal) -> dict[str, Item]:
    """The items that `raw` refers to, as far as they are stored."""
    names = referenced(raw)
    responses = {f"resp_{match[1]}" for name in names if (match := _ITEM_ID.fullmatch(name))}
    if len(responses) > MAX_REFERRED:
        raise InvalidInput(
            f"input refers to items of {len(responses)} responses; the limit is {MAX_REFERRED}", param="input"
        )
    stored = await _find(responses, gateway, principal) if responses else {}
    return {item["id"]: item for one in stored.values() for item in _items_of(one) if item["id"] in names}


async def _find(response_ids: set[str], gateway: Gateway, principal: Principal) -> dict[str, StoredResponse]:
    return await asyncio.to_thread(gateway.registry.responses.find, response_ids, tenant=principal.tenant)


def _items_of(stored: StoredResponse) -> list[Item]:
    """The conversation with the output at its end."""
    output: list[Item] = stored.body["output"]
    return [*stored.items, *output]


def _unscored(output: list[OutputItem]) -> list[OutputItem]:
    """The output without its log-probabilities."""
    return [
        msgspec.structs.replace(item, content=[msgspec.structs.replace(part, logprobs=[]) for part in item.content])
        if isinstance(item, OutputMessage)
        else item
        for item in output
    ]


def _numbered(items: list[Item], response_id: str) -> list[Item]:
    """The items, each with an id."""
    made = response_id.removeprefix("resp_")
    prefixes = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
    return [{"id": f"{prefixes[item['type']]}_{made}_i{at}", **item} for at, item in enumerate(items)]
