"""Evaluations over HTTP, with OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from tests.gateway.api.conftest import Served
from tests.registry.artifacts import make_adapter
from tunery.gateway.cli.eval.remote import RemoteEval
from tunery.gateway.engine.messages import Generate
from tunery.plugins.testing import write_rows
from tunery.registry import NewVersion
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest

EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
CUSTOM = {"type": "custom", "item_schema": {"type": "object", "required": ["answer"]}, "include_sample_schema": True}
ITEMS = [{"item": {"question": "Capital of France?", "answer": "Paris"}}, {"item": {"question": "2+2?", "answer": "4"}}]
ASK = {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]}


def source(model: str = "tiny", content: list[Any] = ITEMS, **more: Any) -> Any:
    rows = {"type": "file_content", "content": content}
    return {"type": "completions", "model": model, "source": rows, "input_messages": ASK} | more


async def ended(served: Served, run: Any) -> Any:
    while run.status in ("queued", "in_progress"):
        await asyncio.sleep(0.02)
        run = await served.client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return run


async def create(served: Served, *criteria: dict[str, Any], **more: Any) -> Any:
    graders: Any = list(criteria or (EXACT,))
    return await served.client.evals.create(data_source_config=CUSTOM, testing_criteria=graders, **more)  # type: ignore[arg-type]


async def test_a_run_grades_every_row_and_counts(served: Served) -> None:
    served.says("Paris")
    made = await create(served, name="capitals", metadata={"team": "geo"})
    assert made.name == "capitals"
    assert (await served.client.evals.retrieve(made.id)).metadata == {"team": "geo"}
    run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source(), name="first"))
    assert run.status == "completed", run.error
    counts = run.result_counts
    assert (counts.passed, counts.failed, counts.errored, counts.total) == (1, 1, 0, 2)
    assert [(c.testing_criteria, c.passed, c.failed) for c in run.per_testing_criteria_results] == [("exact", 1, 1)]
    (usage,) = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == ("tiny", 2)
    assert run.report_url is None
    assert (await served.client.evals.retrieve(made.id)).id == made.id
    items = [item async for item in served.client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=1)]
    assert [(item.status, item.datasource_item_id) for item in items] == [("pass", 0), ("fail", 1)]
    assert items[0].datasource_item == ITEMS[0]["item"]
    assert items[0].sample.output[0].content == "Paris"
    assert items[0].sample.input[0].content == "Capital of France?"
    assert [(result.name, result.score, result.passed) for result in items[1].results] == [("exact", 0.0, False)]
    one = await served.client.evals.runs.output_items.retrieve(items[1].id, eval_id=made.id, run_id=run.id)
    assert one.to_dict() == items[1].to_dict()
    failed = served.client.evals.runs.output_items.list(run.id, eval_id=made.id, status="fail")
    assert [item.id async for item in failed] == [items[1].id]


async def test_a_version_is_compared_with_the_base_and_keeps_what_was_measured(served: Served) -> None:
    version = served.publish("acme/geo", alias="production")
    right, wrong = (served.gateway.renderer.encode(text) for text in ("Paris", "Rome"))
    served.engine.reply = lambda request: right if request.composition else wrong
    made = await create(served)
    content = [{"item": {"question": f"{n}?", "answer": "Paris"}} for n in range(6)]
    run = await served.client.evals.runs.create(
        made.id, data_source=source("acme/geo", content), name="geo", extra_body={"tunery": {"against": "tiny"}}
    )
    # The version that the alias meant then is measured, whatever it means by now.
    served.publish("acme/geo", seed=1, alias="production")
    run = await ended(served, run)
    details = run.to_dict()["tunery"]
    assert (run.model, details["model"], details["against"], details["rows"]) == ("acme/geo", "acme/geo@1", "tiny", 6)
    one, every = details["summary"]["comparison"]
    assert (one["difference"], one["low"], one["high"], one["only_first"], one["p"]) == (1.0, 1.0, 1.0, 6, 2 / 64)
    assert every["name"] == "all graders"
    assert {usage.run_model_name: usage.invocation_count for usage in run.per_model_usage} == {"acme/geo": 6, "tiny": 6}
    page = await served.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    against = page.data[0].to_dict()["tunery"]["against"]  # type: ignore[index]
    assert (against["sample"]["model"], against["sample"]["output"][0]["content"]) == ("tiny", "Rome")
    registry = served.gateway.registry
    await served.client.evals.delete(made.id)
    (kept,) = registry.evals.measurements(version.digest)
    assert (kept.adapter, kept.number, kept.run, kept.against) == ("acme/geo", 1, run.id, "tiny")
    assert kept.results["model"]["graders"][0]["mean"] == 1.0
    assert kept.results["comparison"][0]["difference"] == 1.0
    registry.collect(older_than=0)
    assert registry.evals.measurements(version.digest) == [kept]
    registry.remove("acme/geo@1", actor="test")
    assert registry.evals.measurements(version.digest) == []


async def test_models_served_here_are_judges(served: Served) -> None:
    served.publish("acme/judge")
    encode, verdicts = served.gateway.renderer.encode, iter(['{"label": "good"}', '{"score": 4}', "hm", '{"score": 9}'])

    def reply(request: Generate) -> Any:
        return encode(next(verdicts) if request.composition else "Paris")

    served.engine.reply = reply
    messages = [{"role": "user", "content": "{{item.question}} {{sample.output_text}}"}]
    label = {"type": "label_model", "name": "label", "model": "acme/judge", "input": messages}
    label |= {"labels": ["good", "bad"], "passing_labels": ["good"]}
    score = {"type": "score_model", "name": "score", "model": "acme/judge", "input": messages, "range": [1, 5]}
    made = await create(served, label, score)
    run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source()))
    assert run.status == "completed", run.error
    assert (run.result_counts.passed, run.result_counts.errored) == (1, 1)
    first, second = (await served.client.evals.runs.output_items.list(run.id, eval_id=made.id)).data
    assert [(result.score, result.passed) for result in first.results] == [(1.0, True), (0.75, True)]
    assert first.results[1].sample == {"output_text": '{"score": 4}', "value": 4}
    errors = [result.to_dict()["error"] for result in second.results]
    assert errors == [
        "the judge's answer is not JSON: 'hm'",
        """the judge's answer has no score that was asked for: '{"score": 9}'""",
    ]
    usage = {usage.run_model_name: usage.invocation_count for usage in run.per_model_usage}
    assert usage == {"tiny": 2, "acme/judge": 4}


async def test_training_files_are_rows_too(served: Served) -> None:
    served.says("b")
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]} for text in "bc"]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = await served.client.files.create(file=("held.jsonl", body), purpose="evals")
    grader: Any = EXACT | {"reference": "{{item.reference}}"}
    made = await served.client.evals.create(
        data_source_config={"type": "custom", "item_schema": {"type": "object"}}, testing_criteria=[grader]
    )
    data: Any = {"type": "responses", "model": "tiny", "source": {"type": "file_id", "id": file.id}}
    run = await served.client.evals.runs.create(made.id, data_source=data)
    # The rows stay as long as the run, whatever becomes of the file.
    await served.client.files.delete(file.id)
    served.gateway.registry.collect(older_than=0)
    run = await ended(served, run)
    assert (run.status, run.result_counts.passed, run.result_counts.failed) == ("completed", 1, 1)
    assert run.to_dict()["data_source"] == data


async def test_a_row_that_cannot_be_answered_is_an_error_of_that_row(served: Served) -> None:
    served.says("4")
    content = [{"item": {"question": "long " * 2000, "answer": "4"}}, ITEMS[1]]
    made = await create(served)
    run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source(content=content)))
    assert (run.status, run.result_counts.errored, run.result_counts.passed) == ("completed", 1, 1)
    page = await served.client.evals.runs.output_items.list(run.id, eval_id=made.id)
    assert page.data[0].sample.error.code == "context_length_exceeded"
    assert page.data[0].results == []


async def test_runs_are_in_the_background_of_interactive_requests(served: Served) -> None:
    made = await create(served)
    with served.gateway.admission.hold(4, tenant="acme"):
        run = await served.client.evals.runs.create(made.id, data_source=source())
        assert (await ended(served, run)).status == "completed"
    assert [request.background for request in served.engine.requests] == [True, True]


async def test_a_run_is_canceled_and_deleted(served: Served) -> None:
    made = await create(served)
    served.engine.delay = 60
    run = await served.client.evals.runs.create(made.id, data_source=source())
    while not served.engine.requests:
        await asyncio.sleep(0.02)
    canceled = await served.client.evals.runs.cancel(run.id, eval_id=made.id)
    assert canceled.status == "canceled"
    with pytest.raises(BadRequestError, match="is canceled and cannot be canceled"):
        await served.client.evals.runs.cancel(run.id, eval_id=made.id)
    while not served.engine.cancelled:
        await asyncio.sleep(0.05)
    served.engine.delay = 0
    other = await ended(served, await served.client.evals.runs.create(made.id, data_source=source()))
    listed = await served.client.evals.runs.list(made.id)
    assert [each.id for each in listed.data] == [run.id, other.id]
    completed = await served.client.evals.runs.list(made.id, status="completed", order="desc")
    assert [each.id for each in completed.data] == [other.id]
    deleted = await served.client.evals.runs.delete(other.id, eval_id=made.id)
    assert (deleted.deleted, deleted.run_id) == (True, other.id)
    with pytest.raises(NotFoundError):
        await served.client.evals.runs.retrieve(other.id, eval_id=made.id)


async def test_a_model_that_is_gone_fails_the_run(served: Served) -> None:
    served.publish("acme/geo")
    made = await create(served)
    with served.gateway.admission.hold(4, tenant="acme"):
        run = await served.client.evals.runs.create(made.id, data_source=source("acme/geo"))
        served.gateway.registry.remove("acme/geo@1", actor="test")
    run = await ended(served, run)
    assert (run.status, run.error.code) == ("failed", "model_not_found")
    assert "acme/geo@1" in run.error.message


async def test_evaluations_are_listed_renamed_and_deleted(served: Served) -> None:
    made = [await create(served, name=f"e{n}") for n in range(3)]
    first = await served.client.evals.list(limit=2)
    assert ([each.id for each in first.data], first.has_more) == ([each.id for each in made[:2]], True)
    assert [each.id async for each in served.client.evals.list(limit=1)] == [each.id for each in made]
    newest = await served.client.evals.list(order="desc", after=made[2].id)
    assert [each.name for each in newest.data] == ["e1", "e0"]
    changed = await served.client.evals.update(made[0].id, name="renamed", metadata={"a": "b"})
    assert (changed.name, changed.metadata, changed.testing_criteria) == (
        "renamed",
        {"a": "b"},
        made[0].testing_criteria,
    )
    latest = await served.client.evals.list(order="desc", order_by="updated_at", limit=1)
    assert latest.data[0].id == made[0].id
    assert (await served.client.evals.delete(made[1].id)).deleted
    with pytest.raises(NotFoundError) as error:
        await served.client.evals.retrieve(made[1].id)
    assert (error.value.code, error.value.param) == ("eval_not_found", "eval_id")
    with pytest.raises(NotFoundError) as error:
        await served.client.evals.list(after=made[1].id)
    assert (error.value.code, error.value.param) == ("eval_not_found", "after")
    with pytest.raises(NotFoundError) as error:
        await served.client.evals.runs.list(made[0].id, after="nope")
    assert (error.value.code, error.value.param) == ("eval_run_not_found", "after")


JUDGE = {"name": "judge", "model": "tiny", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
SCORE = JUDGE | {"type": "score_model", "range": [-1e9, 1e9], "sampling_params": {"max_completion_tokens": 1023}}
LABEL = JUDGE | {"type": "label_model", "labels": ["a", "b"], "passing_labels": ["a"]}
GRADERS = {"data_source_config": CUSTOM, "testing_criteria": [EXACT]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"testing_criteria": []}, "testing_criteria"),
        ({"testing_criteria": [EXACT, EXACT]}, "testing_criteria"),
        ({"testing_criteria": [{"type": "python", "name": "p", "source": "1"}]}, "testing_criteria[0]"),
        ({"testing_criteria": [SCORE | {"range": [0, 1e308]}]}, "testing_criteria[0].range"),
        ({"testing_criteria": [SCORE | {"range": [-2e9, 0]}]}, "testing_criteria[0].range"),
        ({"testing_criteria": [LABEL | {"labels": ["a", "b", "a"]}]}, "testing_criteria[0].labels"),
        ({"testing_criteria": [LABEL | {"passing_labels": ["a", "a"]}]}, "testing_criteria[0].passing_labels"),
        (
            {"testing_criteria": [EXACT, SCORE | {"sampling_params": {"max_completion_tokens": 1024}}]},
            "testing_criteria[1].sampling_params",
        ),
        ({"data_source_config": {}}, "data_source_config"),
        ({"data_source_config": {"type": "logs"}}, "data_source_config"),
        ({"data_source_config": {"type": "custom", "item_schema": []}}, "data_source_config"),
        ({"data_source_config": {"type": "custom", "item_schema": {"type": 1}}}, "data_source_config.item_schema"),
        ({"data_source_config": CUSTOM | {"more": 1}}, "data_source_config"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"name": 1}, "name"),
        ({"sharing": True}, "sharing"),
    ],
)
async def test_an_evaluation_that_cannot_be_is_refused_by_name(
    served: Served, body: dict[str, Any], param: str
) -> None:
    response = await served.post("/v1/evals", GRADERS | body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"model": "no/body"}, 404, "data_source.model"),
        ({"model": None}, 400, "data_source.model"),
        ({"model": "a/b:0"}, 400, "data_source.model"),
        ({"type": "jsonl"}, 400, "data_source.type"),
        ({"type": []}, 400, "data_source.type"),
        ({"source": None}, 400, "data_source.source"),
        ({"source": {"type": "stored_completions"}}, 400, "data_source.source"),
        ({"source": {"type": "file_id", "id": "file-none"}}, 404, "data_source.source.id"),
        ({"source": {"type": "file_id", "id": "x" * 10_000}}, 404, "data_source.source.id"),
        ({"source": {"type": "file_content", "content": []}}, 400, None),
        ({"source": {"type": "file_content", "content": [{"item": {}}]}}, 400, None),
        ({"source": {"type": "file_content", "content": [1]}}, 400, None),
        ({"input_messages": []}, 400, "data_source.input_messages"),
        ({"input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.none}}"}]}}, 400, None),
        ({"sampling_params": {"temperature": 3}}, 400, "data_source.sampling_params"),
        ({"sampling_params": {"seed": 10**30}}, 400, "data_source.sampling_params"),
        ({"sampling_params": {"max_completion_tokens": 10**9}}, 400, "data_source.sampling_params"),
        ({"sampling_params": {"max_tokens": 1024}}, 400, "data_source.sampling_params"),
        ({"sampling_params": {"tools": [{}]}}, 400, "data_source.sampling_params"),
        ({"more": 1}, 400, "data_source"),
    ],
)  # fmt: skip
async def test_a_run_that_cannot_be_is_refused_by_name(
    served: Served, more: dict[str, Any], status: int, param: str | None
) -> None:
    made = await create(served)
    response = await served.post(f"/v1/evals/{made.id}/runs", {"data_source": source(**more)})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text
    assert (await served.client.evals.runs.list(made.id)).data == []
    against = await served.post(
        f"/v1/evals/{made.id}/runs", {"data_source": source(), "tunery": {"against": "no/body"}}
    )
    assert (against.status_code, against.json()["error"]["param"]) == (404, "tunery.against")


async def test_what_is_not_there_is_not_found(served: Served) -> None:
    made = await create(served)
    run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source()))
    other = await create(served)
    items = served.client.evals.runs.output_items
    for item in (
        "none",
        f"outputitem_{run.id.removeprefix('evalrun_')}_99",
        f"outputitem_{run.id.removeprefix('evalrun_')}_00",
    ):
        with pytest.raises(NotFoundError) as error:
            await items.retrieve(item, eval_id=made.id, run_id=run.id)
        assert (error.value.code, error.value.param) == ("output_item_not_found", "output_item_id")
    with pytest.raises(NotFoundError) as error:
        await served.client.evals.runs.retrieve(run.id, eval_id=other.id)
    assert (error.value.code, error.value.param) == ("eval_run_not_found", "run_id")
    for bad in (served.client.evals.retrieve("x" * 200), items.retrieve("x" * 300, eval_id=made.id, run_id=run.id)):
        with pytest.raises(BadRequestError):
            await bad


async def test_a_weighted_adapter_is_measured_and_is_no_version(served: Served) -> None:
    version = served.publish("acme/geo")
    served.publish("acme/tone", seed=1)
    made = await create(served)
    for model, reference in (
        ("acme/geo:0.5", "acme/geo@1:0.5"),
        ("acme/geo+acme/tone:0.1", "acme/geo@1:1.0+acme/tone@1:0.1"),
    ):
        run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source(model)))
        assert run.status == "completed", run.error
        assert run.to_dict()["tunery"]["model"] == reference
    assert served.engine.requests[0].composition[0].weight == 0.5
    assert served.gateway.registry.evals.measurements(version.digest) == []


async def test_a_checkpoint_is_measured_under_its_own_name(served: Served) -> None:
    registry, name = served.gateway.registry, "ft:tiny:default::1a2b3c4d5e6f:ckpt-step-2"
    file = registry.data_files.add(
        write_rows(served.folder / "r.jsonl", 1), tenant="default", purpose="fine-tune", name="r"
    )
    request = JobRequest(adapter="default/geo", trainer="lora", base=served.base.digest, data=(file.id,))
    registry.queue.submit(request, tenant="default")
    job = registry.queue.claim("here", lease=60.0)
    assert job is not None
    new = NewVersion(
        adapter="default/geo", folder=make_adapter(served.folder / "ckpt"), base=served.base, method="lora",
        manifest={}, metrics={}, actor="test",
    )  # fmt: skip
    registry.checkpoints.keep(new, claim=Claim(job.id, job.fence), step=2, name=name)
    served.says("Paris")
    made = await create(served)
    run = await ended(served, await served.client.evals.runs.create(made.id, data_source=source(name)))
    assert (run.status, run.result_counts.passed, run.result_counts.errored) == ("completed", 1, 0), run.error
    assert (run.model, run.to_dict()["tunery"]["model"]) == (name, name)
    assert (await served.client.models.retrieve(name)).id == name


# -- tunery eval run --server ------------------------------------------------------------------------------------------


def run_there(served: Served, folder: Path, **more: Any) -> Any:
    """What `tunery eval run --server` does."""
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    asked = {"graders": [EXACT], "source": source(), "against": None, "done": lambda *_: None} | more
    with RemoteEval(served.url, key=None) as remote:
        return remote.run(data, **asked)


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"against": "no/body"}, NotFound),
        ({"source": source("no/body")}, NotFound),
        ({"source": source(sampling_params={"temperature": 3})}, InvalidInput),
        ({"graders": [EXACT, EXACT]}, InvalidInput),
    ],
)
async def test_a_command_whose_run_is_refused_leaves_nothing_behind(
    served: Served, tmp_path: Path, more: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        await asyncio.to_thread(run_there, served, tmp_path, **more)
    assert (await served.client.files.list()).data == []
    assert (await served.client.evals.list()).data == []


async def test_a_command_whose_run_is_made_keeps_its_file_and_evaluation(served: Served, tmp_path: Path) -> None:
    run = await asyncio.to_thread(run_there, served, tmp_path)
    assert run["status"] == "completed"
    assert [file.filename for file in (await served.client.files.list()).data] == ["items.jsonl"]
    assert [made.id for made in (await served.client.evals.list()).data] == [run["eval_id"]]
