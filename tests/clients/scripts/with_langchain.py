"""LangChain: messages, streams, tools, structured output, an agent and embeddings."""

from __future__ import annotations

import asyncio

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from steps import LIMIT, MESSAGES, MODEL, QUESTION, Team, Ticket, run

model = ChatOpenAI(model=MODEL, max_tokens=200, temperature=0, max_retries=0)
short = ChatOpenAI(model=MODEL, max_tokens=LIMIT, temperature=0, max_retries=0, stream_usage=True)


@tool
def route(team: Team) -> str:
    """Send the ticket to a team."""
    return f"sent to {team}"


def chat() -> None:
    answer = short.invoke([("system", "Be brief."), ("human", QUESTION)])
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.usage_metadata["output_tokens"] <= LIMIT


def stream() -> None:
    chunks = list(short.stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == short.invoke(QUESTION).text
    assert any(chunk.usage_metadata for chunk in chunks)


def asynchronous() -> None:
    async def both() -> None:
        answers = await short.abatch([QUESTION, "Hello"])
        assert len(answers) == 2
        assert [chunk async for chunk in short.astream(QUESTION)]

    asyncio.run(both())


def tools() -> None:
    for choice in ("any", "route"):
        answer = model.bind_tools([route], tool_choice=choice).invoke(QUESTION)
        (call,) = answer.tool_calls
        assert call["name"] == "route"
        assert not answer.invalid_tool_calls
        result = route.invoke(call)
        short.bind_tools([route]).invoke([("human", QUESTION), answer, result])
    streamed = list(model.bind_tools([route], tool_choice="any").stream(QUESTION))
    whole = sum(streamed[1:], streamed[0])
    assert [each["name"] for each in whole.tool_calls] == ["route"]


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        for strict in (None, True):
            asked = model.with_structured_output(Ticket, method=method, strict=strict)
            assert isinstance(asked.invoke(QUESTION), Ticket)


def agent() -> None:
    state = create_agent(short, [route], system_prompt="Route the ticket.").invoke(
        {"messages": MESSAGES}, {"recursion_limit": 50}
    )
    assert state["messages"][-1].type == "ai"


def completion() -> None:
    assert OpenAI(model=MODEL, max_tokens=LIMIT, max_retries=0).invoke("The invoice") is not None


def embeddings() -> None:
    vectors = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False, max_retries=0)
    assert len(vectors.embed_documents([QUESTION, "Hello"])) == 2


def responses() -> None:
    answer = ChatOpenAI(model=MODEL, max_tokens=LIMIT, use_responses_api=True, max_retries=0).invoke(QUESTION)
    assert answer.response_metadata["model_name"] == MODEL


run(chat, stream, asynchronous, tools, structured, agent, completion, embeddings, responses)
