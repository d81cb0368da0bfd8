"""instructor: models from tool calls, JSON schemas and streams."""

from __future__ import annotations

import asyncio

import instructor
from openai import AsyncOpenAI, OpenAI
from steps import LIMIT, MESSAGES, MODEL, Ticket, run

options = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "max_retries": 0}


def chat() -> None:
    client = instructor.from_openai(OpenAI())
    answer = client.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=LIMIT)
    assert answer.model == MODEL


def tools() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
        client = instructor.from_openai(OpenAI(), mode=mode)
        ticket, answer = client.chat.completions.create_with_completion(response_model=Ticket, **options)
        assert isinstance(ticket, Ticket)
        assert answer.choices[0].message.tool_calls


def structured() -> None:
    client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.chat.completions.create(response_model=Ticket, **options), Ticket)
    named = instructor.from_provider(f"openai/{MODEL}", mode=instructor.Mode.TOOLS)
    assert isinstance(named.create(response_model=Ticket, messages=MESSAGES, max_tokens=200, max_retries=0), Ticket)


def stream() -> None:
    client = instructor.from_openai(OpenAI())
    *_, last = client.chat.completions.create_partial(response_model=Ticket, **options)
    Ticket.model_validate(last.model_dump())


def asynchronous() -> None:
    client = instructor.from_openai(AsyncOpenAI())
    assert isinstance(asyncio.run(client.chat.completions.create(response_model=Ticket, **options)), Ticket)


run(chat, tools, structured, stream, asynchronous)
