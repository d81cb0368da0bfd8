"""OpenAI's fine-tuning guides, step by step, with whichever `openai` package is installed.

Reads OPENAI_BASE_URL, OPENAI_API_KEY and MODEL like any script, and nothing in it is Tunery's. Prints a line for every step.
SKIP_STEPS names steps to leave out.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.fine_tuning import FineTuningJob
from pydantic import BaseModel

MODEL = os.environ["MODEL"]
RUN = f"{os.getpid()}-{openai.__version__}"
"""Which jobs are this script's."""
ENDED = ("succeeded", "failed", "cancelled")
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "I was charged twice in March."}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "route_ticket",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"team": {"type": "string", "enum": ["billing", "support"]}},
            "required": ["team"],
            "additionalProperties": False,
        },
    },
}


class Ticket(BaseModel):
    """What a model is asked to return."""

    team: Literal["billing", "support"]
    urgent: bool


client = OpenAI()


def ask(number: int, billing: str, support: str) -> tuple[list[dict[str, str]], str, str]:
    """A question, its team, and the other team."""
    what, right, wrong = (billing, "billing", "support") if number % 2 == 0 else (support, "support", "billing")
    question = {"role": "user", "content": f"Ticket {number}: {what} is wrong."}
    return [{"role": "system", "content": "Name the team."}, question], right, wrong


def conversations(count: int, billing: str, support: str) -> list[dict[str, object]]:
    """Rows of a training file."""
    asked = [ask(number, billing, support) for number in range(count)]
    return [{"messages": [*messages, {"role": "assistant", "content": right}]} for messages, right, _ in asked]


def preferences(count: int) -> list[dict[str, object]]:
    """Rows of the training file of a DPO job."""
    return [
        {
            "input": {"messages": messages},
            "preferred_output": [{"role": "assistant", "content": right}],
            "non_preferred_output": [{"role": "assistant", "content": wrong}],
        }
        for messages, right, wrong in (ask(number, "a refund", "a page") for number in range(count))
    ]


def upload(rows: list[dict[str, object]], name: str) -> str:
    """Write a file of rows, upload it, and wait until it has been checked."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with path.open("rb") as opened:
            file = client.files.create(file=opened, purpose="fine-tune")
        assert (file.filename, file.bytes, file.purpose) == (name, path.stat().st_size, "fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=0.2)
    assert file.status == "processed", file
    assert len(client.files.content(file.id).text.splitlines()) == len(rows)
    assert file.id in [each.id for each in client.files.list(purpose="fine-tune", limit=2)]
    return file.id


def wait(job_id: str, *statuses: str) -> FineTuningJob:
    """Poll a job until it has one of these statuses."""
    deadline = time.monotonic() + 900
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in statuses:
        assert job.status not in ENDED, job.error
        assert time.monotonic() < deadline, job
        time.sleep(0.3)
    return job


def train() -> FineTuningJob:
    """Start a job, pause and resume it, and follow it to its end."""
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=upload(conversations(12, "an invoice", "a login"), "tickets.jsonl"),
        validation_file=upload(conversations(2, "a receipt", "a password"), "held-out.jsonl"),
        suffix="tickets",
        seed=1,
        metadata={"run": RUN, "kind": "supervised"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": "auto"},
            },
        },
    )
    assert job.object == "fine_tuning.job"
    assert job.status in ("validating_files", "queued", "running")
    assert (job.fine_tuned_model, job.finished_at, job.error) == (None, None, None)
    client.fine_tuning.jobs.pause(job.id)
    wait(job.id, "paused")
    client.fine_tuning.jobs.resume(job.id)
    done = wait(job.id, *ENDED)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    assert done.fine_tuned_model.startswith(f"ft:{MODEL}:")
    assert done.trained_tokens is not None
    assert done.finished_at is not None
    assert done.method is not None
    assert done.method.supervised is not None
    assert done.method.supervised.hyperparameters is not None
    assert done.method.supervised.hyperparameters.n_epochs == 1
    return done


def list_events(job: FineTuningJob) -> None:
    """The events, newest first, by the page and all of them."""
    page = client.fine_tuning.jobs.list_events(job.id, limit=5)
    for event in reversed(page.data):
        assert event.level in ("info", "warn", "error")
        assert event.created_at >= job.created_at
    assert len(page.data) == 5
    assert page.has_next_page()
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=5))
    assert events[:5] == page.data
    assert len({event.id for event in events}) == len(events) > 5
    assert events[-1].message.startswith("Created fine-tuning job")
    losses = [event for event in events if event.type == "metrics"]
    assert losses
    assert all(isinstance(event.data, dict) and "step" in event.data for event in losses)


def list_checkpoints(job: FineTuningJob) -> None:
    """The checkpoints are models too."""
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert checkpoints
    for checkpoint in checkpoints:
        assert checkpoint.fine_tuning_job_id == job.id
        assert checkpoint.metrics.step == checkpoint.step_number
        model = checkpoint.fine_tuned_model_checkpoint
        answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=2)
        assert answer.model == model


def read_results(job: FineTuningJob) -> None:
    """The result file is a table with a row for each step."""
    rows = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert client.files.retrieve(job.result_files[0]).purpose == "fine-tune-results"


def use_model(job: FineTuningJob) -> None:
    """Chat: whole, streamed, with a tool, and as a pydantic model."""
    model = job.fine_tuned_model or ""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    parts, usage = [], None
    for chunk in client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(parts) == answer.choices[0].message.content
    assert usage is not None
    assert usage.total_tokens == answer.usage.total_tokens
    called = client.chat.completions.create(model=model, messages=QUESTION, tools=[TOOL], tool_choice="required")
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert call.type == "function"
    assert json.loads(call.function.arguments)["team"] in ("billing", "support")
    answered = client.chat.completions.create(
        model=model,
        messages=[
            *QUESTION,
            called.choices[0].message.to_dict(),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "routed"},
        ],
        tools=[TOOL],
        max_tokens=4,
    )
    assert answered.choices[0].finish_reason in ("stop", "length", "tool_calls")
    parsed = client.chat.completions.parse(model=model, messages=QUESTION, response_format=Ticket, max_tokens=200)
    assert isinstance(parsed.choices[0].message.parsed, Ticket)
    with client.chat.completions.stream(
        model=model, messages=QUESTION, response_format=Ticket, max_tokens=200
    ) as stream:
        assert any(event.type == "content.done" for event in stream)
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Ticket)
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model


async def use_model_asynchronously(job: FineTuningJob) -> None:
    """The same with the asynchronous client."""
    async with AsyncOpenAI() as other:
        answers = [
            other.chat.completions.create(model=job.fine_tuned_model or "", messages=QUESTION, max_tokens=2)
            for _ in range(3)
        ]
        assert {answer.model for answer in await asyncio.gather(*answers)} == {job.fine_tuned_model}
        assert job.id in [each.id async for each in other.fine_tuning.jobs.list(limit=1)]


def start_dpo(job: FineTuningJob, kind: str, epochs: int) -> FineTuningJob:
    """A DPO job that goes on from the model of a supervised one."""
    started = client.fine_tuning.jobs.create(
        model=job.fine_tuned_model or "",
        training_file=upload(preferences(4), "pairs.jsonl"),
        seed=1,
        metadata={"run": RUN, "kind": kind},
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": epochs, "batch_size": 4}}},
    )
    assert started.method is not None
    assert started.method.dpo is not None
    assert started.method.dpo.hyperparameters is not None
    assert started.method.dpo.hyperparameters.beta == 0.1
    return started


def train_by_preference(job: FineTuningJob) -> None:
    """A DPO job, to its end."""
    done = wait(start_dpo(job, "dpo", 1).id, *ENDED)
    assert done.status == "succeeded", done.error
    client.models.delete(done.fine_tuned_model or "")


def cancel(job: FineTuningJob) -> None:
    """A job that is cancelled, after which its file may be deleted."""
    started = start_dpo(job, "cancelled", 50)
    client.fine_tuning.jobs.cancel(started.id)
    assert wait(started.id, *ENDED).status == "cancelled"
    client.files.delete(started.training_file)


def list_jobs() -> None:
    """Pages that the client asks for by itself, and a filter by metadata."""
    everything = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert len(set(everything)) == len(everything) >= 2
    kinds = [(job.metadata or {})["kind"] for job in client.fine_tuning.jobs.list(metadata={"run": RUN}, limit=1)]
    assert (kinds[0], kinds[-1], len(set(kinds))) == ("cancelled", "supervised", len(kinds))
    (cancelled,) = client.fine_tuning.jobs.list(metadata={"run": RUN, "kind": "cancelled"})
    assert cancelled.status == "cancelled"
    assert not list(client.fine_tuning.jobs.list(metadata={"run": "none"}))


def refused(call: Callable[[], object]) -> openai.APIStatusError:
    """The error that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return error
    raise AssertionError("nothing was refused")


def meet_errors() -> None:
    """Errors have their class, code and param."""
    good = upload(conversations(2, "a bill", "a menu"), "two.jsonl")
    refusals: list[tuple[Callable[[], object], type[openai.APIStatusError], str | None, str]] = [
        (lambda: client.fine_tuning.jobs.retrieve("ftjob-none"), openai.NotFoundError, "fine_tune_not_found", "fine_tune_id"),
        (lambda: client.fine_tuning.jobs.cancel("ftjob-none"), openai.NotFoundError, "fine_tune_not_found", "fine_tune_id"),
        (lambda: client.files.retrieve("file-none"), openai.NotFoundError, None, "id"),
        (lambda: client.models.retrieve("ft:none"), openai.NotFoundError, "model_not_found", "model"),
        (lambda: client.chat.completions.create(model="ft:none", messages=QUESTION), openai.NotFoundError, "model_not_found", "model"),
        (lambda: client.fine_tuning.jobs.create(model=MODEL, training_file="file-none"), openai.BadRequestError, "file_not_found", "training_file"),
        (lambda: client.fine_tuning.jobs.create(model="gpt-none", training_file=good), openai.BadRequestError, "model_not_available", "model"),
        (
            lambda: client.fine_tuning.jobs.create(model=MODEL, training_file=good, hyperparameters={"n_epochs": 0}),
            openai.BadRequestError, "invalid_value", "hyperparameters",
        ),
        (
            lambda: client.fine_tuning.jobs.create(model=MODEL, training_file=good, suffix="x" * 65),
            openai.BadRequestError, "invalid_value", "suffix",
        ),
        (lambda: client.files.create(file=b"{}", purpose="none"), openai.BadRequestError, "invalid_input", "purpose"),  # type: ignore[arg-type]
        (lambda: client.fine_tuning.jobs.list(limit=0), openai.BadRequestError, "invalid_value", "limit"),
        (lambda: client.fine_tuning.jobs.list(after="ftjob-none"), openai.NotFoundError, "fine_tune_not_found", "after"),
    ]  # fmt: skip
    for call, kind, code, param in refusals:
        error = refused(call)
        assert type(error) is kind, error
        assert code in (None, error.code), error
        assert (error.type, error.param) == ("invalid_request_error", param), error
    bad = client.files.create(file=("bad.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    assert client.files.wait_for_processing(bad.id, poll_interval=0.2).status == "error"


def delete_model(job: FineTuningJob) -> None:
    """A deleted model is gone."""
    model = job.fine_tuned_model or ""
    deleted = client.models.delete(model)
    assert (deleted.id, deleted.deleted) == (model, True)
    error = refused(lambda: client.chat.completions.create(model=model, messages=QUESTION))
    assert (type(error), error.code) == (openai.NotFoundError, "model_not_found")


def main() -> None:
    """Run every step."""
    print(f"openai {openai.__version__}")
    job = train()
    steps: dict[str, Callable[[], object]] = {
        "events": lambda: list_events(job),
        "checkpoints": lambda: list_checkpoints(job),
        "results": lambda: read_results(job),
        "model": lambda: use_model(job),
        "async": lambda: asyncio.run(use_model_asynchronously(job)),
        "dpo": lambda: train_by_preference(job),
        "cancel": lambda: cancel(job),
        "jobs": list_jobs,
        "errors": meet_errors,
        "delete": lambda: delete_model(job),
    }
    print("train: ok")
    for name, step in steps.items():
        if name not in os.environ.get("SKIP_STEPS", "").split(","):
            step()
            print(f"{name}: ok")


if __name__ == "__main__":
    main()
