"""`/v1/batches` through the `openai` client: whole batches, what is wrong with them, and how they end early."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

import httpx
import pytest
from openai import BadRequestError, NotFoundError
from openai.types import Batch

from tests.gateway.api.conftest import REPLY, Served
from tunery.gateway.api.inference import ENDPOINTS
from tunery.gateway.api.schemas.batches import EndpointPath
from tunery.gateway.batches.journal import Entry, Journal
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.engine.messages import Generate

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
ENDED = {"completed", "failed", "expired", "cancelled"}


def request(custom_id: str, body: Any = None, *, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": MESSAGES} if body is None else body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body} | fields


async def upload(served: Served, *lines: Any) -> str:
    """A file of these requests, or of lines as they are."""
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    content = b"".join(row + b"\n" for row in rows) or b"\n"
    return (await served.client.files.create(file=("requests.jsonl", content), purpose="batch")).id


async def submit(served: Served, *lines: Any, endpoint: Any = CHAT, **options: Any) -> Batch:
    file = await upload(served, *lines)
    return await served.client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **options)


async def end_of(served: Served, batch: Batch) -> Batch:
    async with asyncio.timeout(120):
        while batch.status not in ENDED:
            await asyncio.sleep(0.05)
            batch = await served.client.batches.retrieve(batch.id)
    return batch


async def lines_of(served: Served, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in (await served.client.files.content(file)).text.splitlines()]


async def test_every_request_is_answered_as_it_is_over_http(served: Served) -> None:
    served.publish("acme/support")
    body = {"model": "acme/support", "messages": MESSAGES}
    batch = await submit(served, request("a", body), request("b"), metadata={"who": "me"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert (batch.status, batch.metadata) == ("validating", {"who": "me"})
    assert batch.expires_at == batch.created_at + 86_400
    batch = await end_of(served, batch)
    assert (batch.status, batch.errors, batch.error_file_id, batch.model) == ("completed", None, None, None)
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 2, "failed": 0}
    first, second = await lines_of(served, batch.output_file_id)
    assert (first["custom_id"], second["custom_id"]) == ("a", "b")
    assert first["id"].startswith("batch_req_")
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    assert first["response"]["request_id"]
    over_http = (await served.post(CHAT, body)).json()
    own = {"id", "created"}
    assert {key: value for key, value in first["response"]["body"].items() if key not in own} == {
        key: value for key, value in over_http.items() if key not in own
    }
    assert batch.usage is not None
    assert batch.usage.input_tokens == 2 * over_http["usage"]["prompt_tokens"]
    assert batch.usage.output_tokens == 2 * over_http["usage"]["completion_tokens"]
    assert batch.usage.total_tokens == 2 * over_http["usage"]["total_tokens"]
    file = await served.client.files.retrieve(str(batch.output_file_id))
    assert (file.purpose, file.filename, file.expires_at) == ("batch_output", f"{batch.id}_output.jsonl", None)
    assert [each.background for each in served.engine.requests] == [True, True, False]
    assert not (served.gateway.registry.home.batches / batch.id).exists()


async def test_completions_and_embeddings(served: Served) -> None:
    prompts = {"model": "tiny", "prompt": ["a", "b"], "n": 2}
    batch = await end_of(
        served, await submit(served, request("a", prompts, url="/v1/completions"), endpoint="/v1/completions")
    )
    (line,) = await lines_of(served, batch.output_file_id)
    assert [choice["text"] for choice in line["response"]["body"]["choices"]] == [REPLY] * 4
    assert batch.model == "tiny"
    inputs = {"model": "tiny", "input": ["one", "two"] * 50}
    batch = await end_of(
        served, await submit(served, request("a", inputs, url="/v1/embeddings"), endpoint="/v1/embeddings")
    )
    (line,) = await lines_of(served, batch.output_file_id)
    assert len(line["response"]["body"]["data"]) == 100
    assert batch.usage is not None
    assert (batch.usage.input_tokens > 0, batch.usage.output_tokens) == (True, 0)


async def test_responses(served: Served) -> None:
    asked = {"model": "tiny", "input": "Hi"}
    batch = await end_of(
        served, await submit(served, request("a", asked, url="/v1/responses"), endpoint="/v1/responses")
    )
    (line,) = await lines_of(served, batch.output_file_id)
    answer = line["response"]["body"]
    assert (answer["object"], answer["status"]) == ("response", "completed")
    over_http = (await served.post("/v1/responses", asked)).json()
    assert answer["output"][0]["content"] == over_http["output"][0]["content"]
    assert batch.usage is not None
    assert batch.usage.input_tokens == over_http["usage"]["input_tokens"]
    assert batch.usage.output_tokens == over_http["usage"]["output_tokens"]
    refused = await end_of(
        served,
        await submit(
            served,
            request("a", {"model": "tiny", "input": "", "stream": True}, url="/v1/responses"),
            endpoint="/v1/responses",
        ),
    )
    (line,) = await lines_of(served, refused.error_file_id)
    assert line["response"]["body"]["error"]["param"] == "stream"


@pytest.mark.slow
async def test_a_request_that_fails_is_in_the_error_file_with_the_answer_it_has_over_http(served: Served) -> None:
    bad: list[Any] = [
        {"model": "acme/none", "messages": MESSAGES},
        {"model": "tiny"},
        {"messages": MESSAGES},
        {"model": "tiny"},
        {"model": "tiny", "messages": MESSAGES, "stream_options": {"include_usage": 5}},
        {"model": "tiny", "messages": []},
        {"model": 1, "messages": MESSAGES},
        {"model": "tiny", "messages": MESSAGES, "temperature": 9},
        {"model": "tiny", "messages": MESSAGES, "temperature": "9"},
        {"model": "tiny", "messages": MESSAGES, "logit_bias": {"1": 1000}},
        {"model": "tiny", "messages": MESSAGES, "theft": True},
        {"model": "tiny", "messages": MESSAGES, "max_tokens": 10**6},
        {"model": "tiny", "messages": [{"role": "user", "content": "x " * 5000}]},
    ]
    stream = {"model": "tiny", "messages": MESSAGES, "stream": True}
    lines = [request(str(number), body) for number, body in enumerate(bad)]
    batch = await end_of(served, await submit(served, *lines, request("stream", stream), request("good")))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": len(bad) + 2, "completed": 1, "failed": len(bad) + 1}
    failed = await lines_of(served, batch.error_file_id)
    for body, line in zip(bad, failed, strict=False):
        over_http = await served.post(CHAT, body)
        response = line["response"]
        assert (response["status_code"], response["body"]) == (over_http.status_code, over_http.json())
    assert failed[0]["response"]["body"]["error"]["code"] == "model_not_found"
    assert (failed[-1]["custom_id"], failed[-1]["response"]["body"]["error"]["param"]) == ("stream", "stream")
    assert [line["custom_id"] for line in await lines_of(served, batch.output_file_id)] == ["good"]


async def test_a_file_with_bad_lines_fails_with_all_of_them(served: Served) -> None:
    batch = await submit(
        served,
        request("a"),
        b"{not json",
        b"",
        request("a"),
        {"method": "POST", "url": CHAT, "body": {}},
        request("b", method="GET"),
        request("c", url="/v1/completions"),
        {"custom_id": "d", "method": "POST", "url": CHAT},
        [1],
        b'{"custom_id": "\xff"}',
    )
    batch = await end_of(served, batch)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(error.line, error.code, error.param) for error in batch.errors.data or []] == [
        (2, "invalid_json_line", None),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "missing_required_parameter", "custom_id"),
        (6, "invalid_method", "method"),
        (7, "invalid_url", "url"),
        (8, "missing_required_parameter", "body"),
        (9, "invalid_json_line", None),
        (10, "invalid_json_line", None),
    ]
    assert served.engine.requests == []


async def test_an_empty_file_fails(served: Served) -> None:
    batch = await end_of(served, await submit(served))
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or []] == [(None, "empty_file")]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3600, "days": 1}},
            "output_expires_after.days",
        ),
        ({"theft": 1}, "theft"),
    ],
)
async def test_what_is_no_batch_is_refused_by_name(served: Served, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": await upload(served, request("a")), "endpoint": CHAT, "completion_window": "24h"}
    response = await served.post("/v1/batches", body | change)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_files_for_another_purpose_are_refused(served: Served) -> None:
    file = await served.client.files.create(file=("a.txt", b"a"), purpose="user_data")
    with pytest.raises(BadRequestError) as refused:
        await served.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert (refused.value.code, refused.value.param) == ("invalid_file_purpose", "input_file_id")


async def test_batches_are_listed_newest_first(served: Served) -> None:
    batches = [await submit(served, request("a")) for _ in range(3)]
    assert [each.id async for each in served.client.batches.list(limit=2)] == [each.id for each in reversed(batches)]
    page = await served.client.batches.list(limit=2)
    assert page.has_more
    with pytest.raises(NotFoundError):
        await served.client.batches.retrieve("batch_none")
    with pytest.raises(NotFoundError):
        await served.client.batches.list(after="batch_none")
    with pytest.raises(BadRequestError):
        await served.client.batches.cancel("b" * 200)


async def test_a_cancelled_batch_keeps_what_was_answered_and_its_file_cannot_be_deleted_before(served: Served) -> None:
    def slow(asked: Generate) -> list[int]:
        served.engine.delay = 0.0 if len(served.engine.requests) < 6 else 1000.0
        return served.gateway.renderer.encode(REPLY)

    served.engine.reply = slow
    batch = await submit(served, *(request(str(number)) for number in range(50)))
    async with asyncio.timeout(60):
        while batch.request_counts is None or batch.request_counts.completed == 0:
            await asyncio.sleep(0.05)
            batch = await served.client.batches.retrieve(batch.id)
    with pytest.raises(BadRequestError, match=batch.id) as refused:
        await served.client.files.delete(batch.input_file_id)
    assert refused.value.code == "file_in_use"
    batch = await served.client.batches.cancel(batch.id)
    assert batch.status in {"cancelling", "cancelled"}
    batch = await end_of(served, batch)
    assert (batch.status, batch.cancelling_at is None, batch.cancelled_at is None) == ("cancelled", False, False)
    assert batch.request_counts is not None
    lines = await lines_of(served, batch.output_file_id)
    assert 0 < len(lines) == batch.request_counts.completed < 50
    with pytest.raises(BadRequestError, match="cancelled"):
        await served.client.batches.cancel(batch.id)
    await served.client.files.delete(batch.input_file_id)


async def test_what_is_not_answered_in_time_is_said_to_have_expired(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.registry.batches.batches.WINDOW_SECONDS", 2.0)
    served.engine.reply = lambda asked: FakeEngine.echo(asked)
    served.engine.delay = 0.15
    batch = await end_of(served, await submit(served, *(request(str(number)) for number in range(200))))
    assert (batch.status, batch.expired_at is None) == ("expired", False)
    answered = await lines_of(served, batch.output_file_id) if batch.output_file_id else []
    late = await lines_of(served, batch.error_file_id)
    assert {line["error"]["code"] for line in late} == {"batch_expired"}
    assert sorted(int(line["custom_id"]) for line in answered + late) == list(range(200))


async def test_several_batches_share_the_places_and_a_short_one_need_not_wait_for_a_long_one(served: Served) -> None:
    served.engine.delay = 0.01
    long = await submit(served, *(request(str(number)) for number in range(300)))
    async with asyncio.timeout(60):
        while not served.engine.requests:
            await asyncio.sleep(0.01)
    short = await end_of(served, await submit(served, request("a"), request("b")))
    assert short.status == "completed"
    assert (await served.client.batches.retrieve(long.id)).status == "in_progress"
    assert (await end_of(served, long)).status == "completed"


async def test_a_server_that_drains_gives_its_batches_back_with_what_was_answered(served: Served) -> None:
    served.engine.delay = 0.01
    batch = await submit(served, *(request(str(number)) for number in range(500)))
    async with asyncio.timeout(60):
        while len(served.engine.requests) < 20:
            await asyncio.sleep(0.01)
        served.gateway.draining = True
        while (found := served.gateway.registry.batches.get(batch.id)).lease_until is not None:
            await asyncio.sleep(0.05)
    assert (found.state, found.owner) == ("in_progress", None)
    kept = Journal(served.gateway.registry.home.batches / batch.id, fence=found.fence + 1, total=500)
    assert 0 < kept.counts.completed < 500
    kept.close()


async def test_a_full_disk_interrupts_a_batch_that_goes_on_later(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append, refused = Journal.append, list[int]()

    def full_once(journal: Journal, entries: Sequence[Entry]) -> None:
        if not refused:
            refused.append(len(entries))
            raise OSError(errno.ENOSPC, "No space left on device")
        append(journal, entries)

    monkeypatch.setattr(Journal, "append", full_once)
    monkeypatch.setattr("tunery.gateway.batches.runner.BACK_OFF_SECONDS", 0.5)
    batch = await end_of(served, await submit(served, *(request(str(number)) for number in range(20))))
    assert (batch.status, len(refused)) == ("completed", 1)
    assert "No space left on device" in caplog.text
    assert len(await lines_of(served, batch.output_file_id)) == 20


async def test_a_request_waits_for_an_engine_that_has_died(served: Served) -> None:
    ready = served.engine.ready
    served.engine.die()
    batch = await submit(served, request("a"))
    await asyncio.sleep(1.0)
    assert served.engine.requests == []
    served.engine._ready = ready
    assert (await end_of(served, batch)).status == "completed"


async def test_batches_take_nothing_from_the_requests_that_may_be_in_flight(served: Served) -> None:
    served.engine.delay = 0.02
    batch = await submit(served, *(request(str(number)) for number in range(30)))
    async with asyncio.timeout(60):
        while not served.engine.requests:
            await asyncio.sleep(0.01)
    assert served.gateway.in_flight == 0
    batch = await end_of(served, batch)
    async with httpx.AsyncClient(verify=False) as client:
        metrics = (await client.get(f"{served.url}/metrics")).text
    assert 'tunery_batches{state="completed"} 1.0' in metrics
    assert 'tunery_batch_requests_total{outcome="completed"} 30.0' in metrics
    assert 'tunery_time_to_first_token_seconds_count{adapter="base"} 0.0' in metrics
    assert f'tunery_requests_total{{adapter="base",outcome="stop"}} {30.0}' in metrics


def test_the_document_names_the_endpoints_that_there_are() -> None:
    assert get_args(EndpointPath) == tuple(ENDPOINTS)
