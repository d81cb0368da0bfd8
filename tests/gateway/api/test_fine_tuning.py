"""`/v1/fine_tuning/jobs` through the `openai` client; the test is the worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from tests.gateway.api.conftest import Served
from tests.registry.artifacts import make_adapter
from tunery.plugins.events import Evaluated, StepCompleted
from tunery.plugins.testing import write_pairs, write_rows
from tunery.plugins.training.queued.reporter import note_of
from tunery.registry import NewVersion, Version
from tunery.registry.configuration.settings import JobsSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success


@pytest.fixture
async def rows(served: Served) -> FileObject:
    return await served.client.files.create(file=write_rows(served.folder / "rows.jsonl", 20), purpose="fine-tune")


@pytest.fixture
async def job(served: Served, rows: FileObject) -> FineTuningJob:
    return await served.client.fine_tuning.jobs.create(model="tiny", training_file=rows.id)


EVALUATED = {"eval_loss": 2.25, "train_token_accuracy": 0.500049, "token_accuracy": 0.249951}


def take(served: Served) -> Claim:
    job = served.gateway.registry.queue.claim("test")
    assert job is not None
    return Claim(job.id, job.fence)


def step(number: int, loss: float) -> Note:
    event = StepCompleted(
        step=number,
        steps=3,
        loss=loss,
        learning_rate=0.1,
        grad_norm=1.0,
        tokens=10 * number,
        seconds=number,
        token_accuracy=number / 4 + 0.000049,
    )
    return note_of(event)


def train(served: Served, claim: Claim) -> Version:
    """What the process of a job does."""
    registry = served.gateway.registry
    notes = [
        step(1, 3.5),
        step(2, 2.5),
        step(3, 1.5),
        note_of(Evaluated(step=3, eval_loss=2.0, figures={"token_accuracy": 0.6249512})),
    ]
    progress = {"step": 3, "steps": 3, "trained_tokens": 30, "parameters": {"epochs": 3.0, "batch_size": 4}}
    registry.queue.report(claim, notes, progress=progress)
    job = registry.job(claim.job)
    assert job.request is not None
    new = NewVersion(
        adapter=job.adapter,
        folder=make_adapter(served.folder / claim.job, seed=len(registry.versions())),
        base=served.base,
        method=job.trainer,
        manifest={},
        metrics={},
        actor="test",
        alias=job.request.alias,
    )
    done = [Note(kind="succeeded", message="The job has successfully completed")]
    return registry.publish(
        new, job=Success(job=job.id, claim=claim, model_name=job.request.model_name, notes=lambda version: done)
    )


async def follow(served: Served, job: str, last: str | None = None) -> AsyncIterator[tuple[str, dict[str, object]]]:
    """Server-sent events, as (id, event)."""
    headers = {"last-event-id": last} if last else {}
    url = f"{served.url}/v1/fine_tuning/jobs/{job}/events?stream=true"
    event_id = ""
    async with (
        httpx.AsyncClient(verify=False, timeout=60) as client,
        client.stream("GET", url, headers=headers) as lines,
    ):
        async for line in lines.aiter_lines():
            if line.startswith("id: "):
                event_id = line.removeprefix("id: ")
            elif line == "data: [DONE]":
                return
            elif line.startswith("data: "):
                yield event_id, json.loads(line.removeprefix("data: "))


# -- the way of a tutorial ---------------------------------------------------------------------------------------------


async def test_a_job_from_its_file_to_answers_of_its_model(served: Served, rows: FileObject) -> None:
    jobs = served.client.fine_tuning.jobs
    job = await jobs.create(
        model="tiny",
        training_file=rows.id,
        suffix="Support Bot",
        seed=7,
        hyperparameters={"n_epochs": 3},
        metadata={"team": "a"},
        extra_body={"tunery": {"alias": "production"}},
    )
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "queued", "tiny", rows.id)
    assert (job.seed, job.metadata, job.fine_tuned_model, job.result_files) == (7, {"team": "a"}, None, [])
    assert job.hyperparameters.n_epochs == 3
    assert job.hyperparameters.batch_size == "auto"
    assert job.method is not None
    assert job.method.type == "supervised"
    claim = take(served)
    assert (await jobs.retrieve(job.id)).status == "running"
    train(served, claim)
    job = await jobs.retrieve(job.id)
    assert (job.status, job.trained_tokens, job.error) == ("succeeded", 30, None)
    assert job.fine_tuned_model == f"ft:tiny:default:Support Bot:{job.id[-12:]}"
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 4)
    assert job.finished_at is not None
    # Served at that moment, by its name and by its reference.
    for model in (
        job.fine_tuned_model,
        "default/support-bot",
        "default/support-bot@1",
        "default/support-bot@production",
    ):
        answer = await served.client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        assert answer.model == model
    assert served.engine.requests[-4].composition == served.engine.requests[-1].composition
    assert job.fine_tuned_model in [model.id async for model in served.client.models.list()]
    assert (await served.client.models.retrieve(job.fine_tuned_model)).owned_by == "default"
    # Its results.
    (result,) = job.result_files
    content = (await served.client.files.content(result)).text.splitlines()
    assert content == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy", "1,3.5,0.25,,", "2,2.5,0.5,,",
        "3,1.5,0.75,2.0,0.625",
    ]  # fmt: skip
    assert (await served.client.files.retrieve(result)).purpose == "fine-tune-results"
    assert (await jobs.retrieve(job.id)).result_files == [result]


async def test_the_events_of_a_job_newest_first_page_by_page(served: Served, job: FineTuningJob) -> None:
    train(served, take(served))
    events = [event async for event in served.client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert [event.message for event in events] == [
        "The job has successfully completed",
        "Step 3: full validation loss=2.00",
        "Step 3/3: training loss=1.50",
        "Step 2/3: training loss=2.50",
        "Step 1/3: training loss=3.50",
        "Files validated, moving job to queued state",
        f"Validating training file: {job.training_file}",
        f"Created fine-tuning job: {job.id}",
    ]
    assert {event.object for event in events} == {"fine_tuning.job.event"}
    assert [event.type for event in events][:3] == ["message", "metrics", "metrics"]
    assert events[2].data == {"step": 3, "total_steps": 3, "train_loss": 1.5, "train_mean_token_accuracy": 0.75}
    recorded: list[Any] = [event.to_dict()["tunery"] for event in events]
    assert [data.get("token_accuracy") for data in recorded][:3] == [None, 0.625, 0.75]
    assert len({event.id for event in events}) == 8


async def test_events_are_followed_and_a_stream_that_breaks_is_taken_up_again(
    served: Served, job: FineTuningJob
) -> None:
    queue = served.gateway.registry.queue
    claim = take(served)
    queue.report(claim, [step(1, 3.5)])
    seen: list[tuple[str, dict[str, object]]] = []
    async for event in follow(served, job.id):
        seen.append(event)
        if len(seen) == 4:  # the three of the beginning, and a step
            break
    queue.report(claim, [step(2, 2.5)])

    async def rest() -> list[tuple[str, dict[str, object]]]:
        return [event async for event in follow(served, job.id, seen[-1][0])]

    following = asyncio.create_task(rest())
    await asyncio.sleep(0.5)
    train(served, claim)
    messages = [event["message"] for _, event in seen + await following]
    assert messages[3:5] == ["Step 1/3: training loss=3.50", "Step 2/3: training loss=2.50"]
    assert messages[-1] == "The job has successfully completed"
    assert len(messages) == 10
    # A stream of a job that has ended has its whole history.
    assert [event["message"] async for _, event in follow(served, job.id)] == messages


async def test_only_an_event_of_the_job_is_a_place_in_its_history(
    served: Served, rows: FileObject, job: FineTuningJob
) -> None:
    other = await served.client.fine_tuning.jobs.create(model="tiny", training_file=rows.id)
    part = job.id.removeprefix("ftjob-")
    wrong = [
        (f"ftevent-{other.id.removeprefix('ftjob-')}-2", 400), ("ftevent-other-2", 400), (f"ftevent-{part}-x", 400),
        (f"ftevent-{part}--1", 400), (f"ftevent-{part}-0", 400), (f"ftevent-{part}-02", 400), ("2", 400), ("-1", 400),
        (f"ftevent-{part}-99", 404),
    ]  # fmt: skip
    url = f"{served.url}/v1/fine_tuning/jobs/{job.id}/events"
    async with httpx.AsyncClient(verify=False) as client:
        for event, status in wrong:
            for response, param in (
                (await client.get(url, params={"after": event}), "after"),
                (await client.get(url, params={"after": event, "stream": "true"}), "after"),
                (await client.get(f"{url}?stream=true", headers={"last-event-id": event}), "Last-Event-ID"),
            ):
                assert response.status_code == status, (event, response.text)
                assert response.json()["error"]["param"] == param
        response = await client.get(url, params={"after": f"ftevent-{part}-3"})
        assert [event["tunery"]["number"] for event in response.json()["data"]] == [2, 1]


async def test_an_interruption_is_an_event(served: Served, job: FineTuningJob) -> None:
    served.gateway.registry.queue.release(take(served), waiting="the process was killed by signal 9", crashed=True)
    event = (await served.client.fine_tuning.jobs.list_events(job.id, limit=1)).data[0]
    assert (event.level, event.type) == ("warn", "message")
    assert "The job was interrupted: the process was killed by signal 9." in event.message


# -- checkpoints -------------------------------------------------------------------------------------------------------


def keep(served: Served, claim: Claim, steps: int) -> None:
    """What the process of a job does at the end of an epoch."""
    registry = served.gateway.registry
    job = registry.job(claim.job)
    assert job.request is not None
    new = NewVersion(
        adapter=job.adapter,
        folder=make_adapter(served.folder / f"{claim.job}-{steps}", seed=100 + steps),
        base=served.base,
        method=job.trainer,
        manifest={},
        metrics={"train_loss": 2.5} | (EVALUATED if steps == 4 else {}),
        actor="test",
    )
    registry.checkpoints.keep(
        new, claim=claim, step=steps, name=f"{job.request.model_name}:ckpt-step-{steps}"
    )  # fmt: skip


async def test_checkpoints_are_models(served: Served, job: FineTuningJob) -> None:
    list_checkpoints = served.client.fine_tuning.jobs.checkpoints.list
    empty = await list_checkpoints(job.id)
    assert (empty.data, empty.has_more) == ([], False)
    claim = take(served)
    for steps in (2, 4, 6):
        keep(served, claim, steps)
    checkpoints = [checkpoint async for checkpoint in list_checkpoints(job.id, limit=2)]
    assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 4, 2]
    assert {checkpoint.fine_tuning_job_id for checkpoint in checkpoints} == {job.id}
    last, middle, _ = checkpoints
    assert last.fine_tuned_model_checkpoint == f"ft:tiny:default::{job.id[-12:]}:ckpt-step-6"
    metrics = middle.metrics
    assert (metrics.step, metrics.train_loss, metrics.full_valid_loss) == (4, 2.5, 2.25)
    # Token accuracies have four digits wherever a client sees them.
    assert (metrics.train_mean_token_accuracy, metrics.full_valid_mean_token_accuracy) == (0.5, 0.25)
    assert metrics.valid_mean_token_accuracy == 0.25
    assert (last.metrics.full_valid_loss, last.metrics.train_mean_token_accuracy) == (None, None)
    page = await list_checkpoints(job.id, limit=2)
    assert page.to_dict()["first_id"] == last.id
    assert page.to_dict()["last_id"] == middle.id
    # Served while the job goes on, each with its own weights; nothing is published.
    client = served.client
    for name in (last.fine_tuned_model_checkpoint, middle.fine_tuned_model_checkpoint):
        answer = await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
        assert answer.model == name
        assert (await client.models.retrieve(name)).owned_by == "default"
    assert served.engine.requests[-2].composition != served.engine.requests[-1].composition
    assert served.gateway.registry.versions() == []
    listed = [model.id async for model in client.models.list()]
    assert listed == ["tiny", *(checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints[::-1])]
    # They outlive the job's success, until they are deleted.
    train(served, claim)
    assert len((await list_checkpoints(job.id)).data) == 3
    assert (await client.models.delete(last.fine_tuned_model_checkpoint)).deleted
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(NotFoundError) as missing:
            await call(last.fine_tuned_model_checkpoint)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert len((await list_checkpoints(job.id)).data) == 2


async def test_what_is_no_checkpoint_is_refused(served: Served, rows: FileObject, job: FineTuningJob) -> None:
    keep(served, take(served), 2)
    jobs, name = served.client.fine_tuning.jobs, f"ft:tiny:default::{job.id[-12:]}:ckpt-step-2"
    with pytest.raises(BadRequestError, match="is a checkpoint; jobs go on from versions"):
        await jobs.create(model=name, training_file=rows.id)
    with pytest.raises(NotFoundError) as missing:
        await jobs.checkpoints.list(job.id, after="ftckpt_none")
    assert (missing.value.code, missing.value.param) == ("checkpoint_not_found", "after")
    for wrong in (f"{name}9", f"{name}+acme/support", "ft:tiny:default::none:ckpt-step-2"):
        with pytest.raises(NotFoundError):
            await served.client.chat.completions.create(model=wrong, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(BadRequestError, match="disagree"):
        await served.client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "hi"}], extra_body={"adapter": "acme/support"}
        )


# -- listing -----------------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_by_page_and_metadata(served: Served, rows: FileObject) -> None:
    jobs = served.client.fine_tuning.jobs
    made = [
        (await jobs.create(model="tiny", training_file=rows.id, metadata=metadata)).id
        for metadata in ({"team": "a"}, {"team": "b"}, None, {"team": "a", "run": "2"})
    ]
    assert [job.id async for job in jobs.list(limit=3)] == made[::-1]
    assert (await jobs.list(limit=1)).data[0].id == made[-1]
    assert [job.id async for job in jobs.list(metadata={"team": "a"})] == [made[3], made[0]]
    assert [job.id async for job in jobs.list(metadata={"team": "a", "run": "2"})] == [made[3]]
    assert [job.id async for job in jobs.list(extra_query={"metadata": "null"})] == [made[2]]


async def test_a_retried_create_with_one_key_is_one_job(served: Served, rows: FileObject) -> None:
    jobs = served.client.fine_tuning.jobs
    made = [
        await jobs.create(model="tiny", training_file=rows.id, extra_headers={"Idempotency-Key": key})
        for key in ("a", "a", "b")
    ]
    assert made[0] == made[1]
    assert made[2].id != made[0].id
    assert len(served.gateway.registry.jobs()) == 2


# -- cancel, pause, resume ---------------------------------------------------------------------------------------------


async def test_a_job_is_paused_resumed_and_cancelled(served: Served, job: FineTuningJob) -> None:
    jobs = served.client.fine_tuning.jobs
    assert (await jobs.pause(job.id)).to_dict()["status"] == "paused"
    assert (await jobs.resume(job.id)).status == "queued"
    claim = take(served)
    assert (await jobs.cancel(job.id)).status == "running"
    assert served.gateway.registry.queue.beat(claim) == "cancel"
    served.gateway.registry.queue.finish(claim, "cancelled", error="The job was cancelled")
    cancelled = await jobs.retrieve(job.id)
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    with pytest.raises(BadRequestError) as refused:
        await jobs.cancel(job.id)
    assert refused.value.code == "job_ended"
    with pytest.raises(BadRequestError) as refused:
        await jobs.resume(job.id)
    assert refused.value.code == "not_paused"


async def test_a_failed_job_says_why(served: Served, job: FineTuningJob) -> None:
    served.gateway.registry.queue.finish(take(served), "failed", error="3 rows are bad", code="schema")
    failed = await served.client.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("schema", "3 rows are bad")
    resumed = await served.client.fine_tuning.jobs.resume(job.id)
    assert (resumed.status, resumed.error, resumed.finished_at) == ("queued", None, None)


async def test_a_job_that_only_has_to_be_published_cannot_be_paused(served: Served, job: FineTuningJob) -> None:
    served.gateway.registry.queue.report(take(served), [], progress={"step": 3, "steps": 3})
    with pytest.raises(BadRequestError, match="can still be cancelled") as refused:
        await served.client.fine_tuning.jobs.pause(job.id)
    assert refused.value.code == "job_finishing"
    assert (await served.client.fine_tuning.jobs.cancel(job.id)).status == "running"


async def test_a_job_whose_file_is_gone_before_it_began_cannot_be_resumed(
    served: Served, rows: FileObject, job: FineTuningJob
) -> None:
    served.gateway.registry.queue.finish(take(served), "failed", error="no", code="schema")
    await served.client.files.delete(rows.id)
    with pytest.raises(BadRequestError, match="create a new job") as refused:
        await served.client.fine_tuning.jobs.resume(job.id)
    assert (refused.value.code, refused.value.param) == ("file_not_found", "training_file")
    assert (await served.client.fine_tuning.jobs.retrieve(job.id)).status == "failed"


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_unknown_jobs_are_not_found_in_openais_words(served: Served) -> None:
    jobs = served.client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(NotFoundError, match="Could not find fine tune: ftjob-none") as missing:
            await call("ftjob-none")
        assert (missing.value.code, missing.value.param) == ("fine_tune_not_found", "fine_tune_id")
    served.gateway.registry.start_job("job-1", adapter="acme/bot", trainer="lora")
    with pytest.raises(NotFoundError):
        await jobs.retrieve("job-1")


@pytest.mark.parametrize(
    ("changed", "param", "code", "message"),
    [
        ({"model": "gpt-4o-mini"}, "model", "model_not_available", "gpt-4o-mini is not available for fine-tuning"),
        ({"model": "ft:tiny:x::1"}, "model", "model_not_available", "does not exist"),
        ({"training_file": "file-none"}, "training_file", "file_not_found", "file-none"),
        ({"validation_file": "file-none"}, "validation_file", "file_not_found", "file-none"),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_method", "supervised, dpo"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "integrations",
            None,
            "needs the package wandb",
        ),
        ({"integrations": [{"type": "mlflow"}]}, "integrations", "unsupported_integration", "unknown tracker 'mlflow'"),
        ({"suffix": "x" * 65}, "suffix", None, "64"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters", None, ">= 1"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", None, "16"),
        ({"tunery": {"trainer": "magic"}}, "tunery.trainer", "unknown_name", "unknown trainer 'magic'"),
        ({"tunery": {"adapter": "../x"}}, "tunery.adapter", None, "../x"),
        ({"tunery": {"from": "acme/none"}}, "tunery.from", None, "acme/none"),
        ({"tunery": {"alias": "A B"}}, "tunery.alias", None, "A B"),
        ({"tunery": {"allow": ["magic"]}}, "tunery.allow", "unknown_name", "magic"),
        ({"tunery": {"parameters": {"rate": 1}}}, "tunery.parameters", "invalid_parameter", "rate"),
        (
            {"tunery": {"parameters": {"r": 10**9}}},
            "tunery.parameters",
            "invalid_parameter",
            "r is a whole number, at ",
        ),
        ({"tunery": {"trainers": "lora"}}, "tunery", None, "trainers"),
        ({"color": "red"}, "color", "unsupported_parameter", "color"),
    ],
)
async def test_what_cannot_be_trained_is_refused_by_field(
    changed: dict[str, object], param: str, code: str | None, message: str, served: Served, rows: FileObject
) -> None:
    response = await served.post("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": rows.id, **changed})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert code is None or error["code"] == code
    assert served.gateway.registry.jobs() == []


# -- models and names --------------------------------------------------------------------------------------------------


async def test_names_of_openais_models_mean_local_bases(served: Served, rows: FileObject) -> None:
    served.gateway.jobs = JobsSettings(models={"gpt-4o-mini-2024-07-18": "tiny"})
    job = await served.client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=rows.id)
    assert job.model == "gpt-4o-mini-2024-07-18"
    train(served, take(served))
    job = await served.client.fine_tuning.jobs.retrieve(job.id)
    assert job.fine_tuned_model == f"ft:gpt-4o-mini-2024-07-18:default::{job.id[-12:]}"
    again = await served.client.fine_tuning.jobs.create(model=job.fine_tuned_model, training_file=rows.id)
    queued = served.gateway.registry.job(again.id)
    assert queued.request is not None
    assert queued.request.parent == "default/tiny@1"


async def test_an_integration_is_kept_where_its_package_is_installed(
    served: Served, rows: FileObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.gateway.api.jobs.create.find_spec", lambda name: object())
    wandb = {"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}
    create = served.client.fine_tuning.jobs.create
    job = await create(model="tiny", training_file=rows.id, integrations=[wandb])  # type: ignore[list-item]
    assert job.integrations is not None
    assert (job.integrations[0].wandb.project, job.integrations[0].wandb.tags) == ("p", ["a"])
    with pytest.raises(BadRequestError, match="wandb: Expected") as refused:
        await create(model="tiny", training_file=rows.id, integrations=[{"type": "wandb"}])  # type: ignore[typeddict-item]
    assert refused.value.param == "integrations"


async def test_dpo_and_its_beta(served: Served) -> None:
    pairs = await served.client.files.create(file=write_pairs(served.folder / "pairs.jsonl", 20), purpose="fine-tune")
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 2, "learning_rate_multiplier": 2}}}
    job = await served.client.fine_tuning.jobs.create(
        model="tiny", training_file=pairs.id, method=method  # type: ignore[arg-type]
    )  # fmt: skip
    queued = served.gateway.registry.job(job.id)
    assert queued.trainer == "dpo"
    assert queued.request is not None
    assert queued.request.parameters.items() >= {"beta": 0.3, "epochs": 2}.items()
    assert queued.request.learning_rate_multiplier == 2
    assert job.method is not None
    assert job.method.type == "dpo"


async def test_a_fine_tuned_model_is_deleted_by_its_name(served: Served, job: FineTuningJob) -> None:
    train(served, take(served))
    name = (await served.client.fine_tuning.jobs.retrieve(job.id)).fine_tuned_model
    assert name is not None
    deleted = await served.client.models.delete(name)
    assert (deleted.id, deleted.deleted, deleted.object) == (name, True, "model")
    assert served.gateway.registry.versions() == []
    for call in (served.client.models.retrieve, served.client.models.delete):
        with pytest.raises(NotFoundError):
            await call(name)
    with pytest.raises(NotFoundError):
        await served.client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(NotFoundError):
        await served.client.models.delete("tiny")


async def test_a_model_that_jobs_continue_from_is_not_deleted(
    served: Served, rows: FileObject, job: FineTuningJob
) -> None:
    train(served, take(served))
    jobs = served.client.fine_tuning.jobs
    name = (await jobs.retrieve(job.id)).fine_tuned_model
    assert name is not None
    child = await jobs.create(model="tiny", training_file=rows.id, extra_body={"tunery": {"from": name}})
    assert child.to_dict()["tunery"]["parent"] == "default/tiny@1"  # type: ignore[index]
    for act in (jobs.retrieve, jobs.pause):  # as it waits, and as it is paused
        await act(child.id)
        with pytest.raises(BadRequestError, match=child.id) as refused:
            await served.client.models.delete(name)
        assert refused.value.code == "version_in_use"
    await jobs.cancel(child.id)
    assert (await served.client.models.delete(name)).deleted
    with pytest.raises(BadRequestError, match="does not exist") as gone:
        await jobs.create(model="tiny", training_file=rows.id, extra_body={"tunery": {"from": name}})
    assert gone.value.param == "tunery.from"
    with pytest.raises(BadRequestError, match="is a checkpoint") as checkpoint:
        await jobs.create(
            model="tiny", training_file=rows.id, extra_body={"tunery": {"from": f"{name}:ckpt-step-1"}}
        )  # fmt: skip
    assert checkpoint.value.param == "tunery.from"


async def test_names_of_fine_tuned_models_are_adapters_too(served: Served, job: FineTuningJob) -> None:
    claim = take(served)
    keep(served, claim, 2)
    train(served, claim)
    name = (await served.client.fine_tuning.jobs.retrieve(job.id)).fine_tuned_model
    assert name is not None
    create = served.client.chat.completions.create
    messages = [{"role": "user", "content": "hi"}]
    for given in (name, f"{name}:ckpt-step-2"):
        for more in ({"extra_body": {"adapter": given}}, {"extra_headers": {"X-Tunery-Adapter": given}}):
            for model in ("tiny", given):
                answer = await create(model=model, messages=messages, **more)  # type: ignore[call-overload]
                assert answer.model == model
    compositions = [request.composition for request in served.engine.requests]
    assert compositions[0] == compositions[3] != compositions[4] == compositions[7]
    with pytest.raises(NotFoundError, match="does not exist") as missing:
        await create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], extra_body={"adapter": "ft:tiny:x::1"}
        )  # fmt: skip
    assert missing.value.param == "adapter"


def test_the_worker_of_a_server_needs_an_executor_that_exists() -> None:
    from tunery.gateway.jobs.worker_thread import WorkerThread
    from tunery.plugins.discovery import load_plugins
    from tunery.registry.home import Home

    with pytest.raises(InvalidInput, match="unknown executor 'ray'"):
        WorkerThread(Home.from_env(), JobsSettings(executor="ray"), load_plugins(allow=()), say=print)


async def test_metrics_count_the_registrys_jobs(served: Served, rows: FileObject) -> None:
    async def metrics() -> dict[str, float]:
        async with httpx.AsyncClient(verify=False) as client:
            lines = (await client.get(f"{served.url}/metrics")).text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    before = await metrics()
    assert before['tunery_jobs{state="queued"}'] == before["tunery_job_waiting_seconds"] == 0
    for _ in range(3):
        await served.client.fine_tuning.jobs.create(model="tiny", training_file=rows.id)
    served.gateway.registry.queue.finish(take(served), "failed", error="bad rows", code="schema")
    train(served, take(served))
    running = {"step": 2, "steps": 8, "loop_seconds": 3.0, "trained_tokens": 20, "train_loss": 2.0}
    await served.client.fine_tuning.jobs.create(
        model="tiny", training_file=rows.id, suffix="new", extra_body={"tunery": {"priority": 1}}
    )
    served.gateway.registry.queue.report(take(served), [], progress=running)
    after = await metrics()
    assert {state: after[f'tunery_jobs{{state="{state}"}}'] for state in ("queued", "failed", "succeeded")} == {
        "queued": 1, "failed": 1, "succeeded": 1,
    }  # fmt: skip
    assert after['tunery_jobs_failed{code="schema"}'] == 1
    assert after["tunery_job_waiting_seconds"] > 0
    assert after["tunery_trained_tokens"] == 30 + 20
    assert {name: value for name, value in after.items() if 'adapter="default/new"' in name} == {
        'tunery_job_done_ratio{adapter="default/new"}': 0.25,
        'tunery_job_step_seconds{adapter="default/new"}': 1.5,
        'tunery_job_train_loss{adapter="default/new"}': 2.0,
    }
