"""The OpenAI Agents SDK: agents on chat completions, and on the Responses API."""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    handoff,
)
from openai import AsyncOpenAI
from steps import LIMIT, MODEL, QUESTION, Team, Ticket, run

client = AsyncOpenAI(max_retries=0)
chats = OpenAIChatCompletionsModel(model=MODEL, openai_client=client)
# An answer that is cut off is an error to the SDK where it is a response, so answers end at a word, or at a letter that no
# call of a tool has.
short = ModelSettings(max_tokens=LIMIT, temperature=0, extra_body={"stop": [" "]})
long = ModelSettings(max_tokens=200, temperature=0, extra_body={"stop": [".", "d", "h", "w"]})


@function_tool
def route(team: Team) -> str:
    """Send the ticket to a team."""
    return f"sent to {team}"


async def in_all(model: Model) -> None:
    """Everything that agents do, with one model."""
    agent = Agent(name="support", instructions="Be brief.", model=model, model_settings=short)
    assert isinstance((await Runner.run(agent, QUESTION)).final_output, str)
    streamed = Runner.run_streamed(agent, QUESTION)
    kinds = [event.type async for event in streamed.stream_events()]
    assert "raw_response_event" in kinds
    for choice in ("required", "route"):
        settings = long.resolve(ModelSettings(tool_choice=choice))
        router = agent.clone(tools=[route], model_settings=settings, tool_use_behavior="stop_on_first_tool")
        assert (await Runner.run(router, QUESTION)).final_output in ("sent to billing", "sent to support")
        streamed = Runner.run_streamed(router, QUESTION)
        assert [event.type async for event in streamed.stream_events()]
        assert streamed.final_output.startswith("sent to ")
    # Once it has called the tool, the agent may answer.
    again = agent.clone(tools=[route], model_settings=long.resolve(ModelSettings(tool_choice="route")))
    assert (await Runner.run(again, QUESTION)).final_output is not None
    typed = agent.clone(output_type=Ticket, model_settings=long)
    assert isinstance((await Runner.run(typed, QUESTION)).final_output, Ticket)
    front = agent.clone(handoffs=[handoff(agent)], model_settings=long.resolve(ModelSettings(tool_choice="required")))
    assert (await Runner.run(front, QUESTION)).last_agent.name == "support"


def chat() -> None:
    asyncio.run(in_all(chats))


def responses() -> None:
    asyncio.run(in_all(OpenAIResponsesModel(model=MODEL, openai_client=AsyncOpenAI(max_retries=0))))


run(chat, responses)
