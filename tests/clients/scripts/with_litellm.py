"""LiteLLM: completions of every kind through its provider for OpenAI's API."""

from __future__ import annotations

import asyncio
import json

import litellm
from steps import LIMIT, MESSAGES, MODEL, Ticket, run

options = {"model": f"openai/{MODEL}", "messages": MESSAGES, "num_retries": 0}
TOOL = {"type": "function", "function": {"name": "route", "parameters": Ticket.model_json_schema()}}


def chat() -> None:
    answer = litellm.completion(**options, max_tokens=LIMIT, temperature=0, user="someone", metadata={"a": "b"})
    assert answer.model.endswith(MODEL)
    assert answer.usage.completion_tokens <= LIMIT


def stream() -> None:
    chunks = litellm.completion(
        **options, max_tokens=LIMIT, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    whole = litellm.stream_chunk_builder(list(chunks), messages=MESSAGES)
    answer = litellm.completion(**options, max_tokens=LIMIT, temperature=0)
    assert whole.choices[0].message.content == answer.choices[0].message.content


def asynchronous() -> None:
    async def both() -> None:
        assert (await litellm.acompletion(**options, max_tokens=LIMIT)).choices
        chunks = await litellm.acompletion(**options, max_tokens=LIMIT, stream=True)
        assert [chunk async for chunk in chunks]

    asyncio.run(both())


def tools() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "route"}}):
        answer = litellm.completion(**options, tools=[TOOL], tool_choice=choice, max_tokens=200)
        message = answer.choices[0].message
        (call,) = message.tool_calls
        Ticket.model_validate_json(call.function.arguments)
        result = {"role": "tool", "tool_call_id": call.id, "content": "sent"}
        later = options | {"messages": [*MESSAGES, message, result]}
        assert litellm.completion(**later, tools=[TOOL], max_tokens=LIMIT).choices


def structured() -> None:
    answer = litellm.completion(**options, response_format=Ticket, max_tokens=200)
    Ticket.model_validate_json(answer.choices[0].message.content)
    answer = litellm.completion(**options, response_format={"type": "json_object"}, max_tokens=LIMIT, stop=["}"])
    assert answer.choices[0].message.content.startswith("{") or json.dumps(answer.choices[0].finish_reason)


def completion() -> None:
    answer = litellm.text_completion(model=f"openai/{MODEL}", prompt="The invoice", max_tokens=LIMIT, num_retries=0)
    assert answer.choices[0].text is not None


def embeddings() -> None:
    answer = litellm.embedding(model=f"openai/{MODEL}", input=["Hello", "Goodbye"])
    assert len(answer.data) == 2


def errors() -> None:
    for wrong, kind in (
        ({"model": "openai/no/body"}, litellm.NotFoundError),
        ({"temperature": 9}, litellm.BadRequestError),
    ):
        try:
            litellm.completion(**(options | wrong))
        except kind:
            continue
        raise AssertionError(wrong)


def responses() -> None:
    assert litellm.responses(model=f"openai/{MODEL}", input="Hello", max_output_tokens=LIMIT).output


run(chat, stream, asynchronous, tools, structured, completion, embeddings, errors, responses)
