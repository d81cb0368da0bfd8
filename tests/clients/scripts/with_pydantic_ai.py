"""Pydantic AI: agents on chat completions, and on the Responses API."""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from steps import LIMIT, MODEL, QUESTION, Team, Ticket, run

short, long = {"max_tokens": LIMIT, "temperature": 0}, {"max_tokens": 200}


def route(team: Team) -> str:
    """Send the ticket to a team."""
    return f"sent to {team}"


async def in_all(model: Model) -> None:
    """Everything that agents do, with one model."""
    agent = Agent(model, instructions="Be brief.", retries=0)
    answer = await agent.run(QUESTION, model_settings=short)
    assert isinstance(answer.output, str)
    assert answer.usage.output_tokens <= LIMIT
    later = await agent.run("And in April?", message_history=answer.all_messages(), model_settings=short)
    assert isinstance(later.output, str)
    async with agent.run_stream(QUESTION, model_settings=short) as stream:
        assert "".join([text async for text in stream.stream_text(delta=True)]) == answer.output
    for output in (ToolOutput(Ticket), NativeOutput(Ticket), NativeOutput(Ticket, strict=True)):
        ticket = await agent.run(QUESTION, output_type=output, model_settings=long)
        assert isinstance(ticket.output, Ticket), output
    called = await agent.run(QUESTION, output_type=route, model_settings=long)
    assert called.output.startswith("sent to ")
    async with agent.run_stream(QUESTION, output_type=ToolOutput(Ticket), model_settings=long) as stream:
        assert isinstance(await stream.get_output(), Ticket)
    helped = Agent(model, tools=[route], retries=3)
    assert isinstance((await helped.run(QUESTION, model_settings=short)).output, str)


def chat() -> None:
    asyncio.run(in_all(OpenAIChatModel(MODEL)))


def responses() -> None:
    asyncio.run(in_all(OpenAIResponsesModel(MODEL)))


run(chat, responses)
