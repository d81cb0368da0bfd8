"""Fine-tuning through real servers: two gateways and a worker apart, on one home."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import NotFoundError

from tests.forked_process import fork_jobs, start_tunery
from tests.gateway.serve_process import TINY, ServeProcess, start_server
from tunery.plugins.testing import write_rows
from tunery.plugins.testing.harness import LONG
from tunery.registry.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PARAMETERS = {"learning_rate": 0.003, "checkpoint_every": 20, "precision": "float32"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[list[ServeProcess]]:
    """Two servers without workers, and a worker."""
    folder = tmp_path_factory.mktemp("servers")
    home = Home(folder / "home")
    environment = os.environ | {"TUNERY_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    with (
        start_server(folder / "a", home, tiny_base_folder, *TINY, "--no-worker") as first,
        start_server(folder / "b", home, tiny_base_folder, *TINY, "--no-worker") as second,
    ):
        worker = start_tunery("worker", environment=environment, prepare=fork_jobs)
        try:
            yield [first, second]
            worker.terminate()
            assert worker.wait(timeout=600) == 0
        finally:
            worker.kill()


def test_a_job_submitted_to_one_server_is_followed_through_another_and_served_by_both(
    servers: list[ServeProcess], tiny_base_folder: Path, tmp_path: Path
) -> None:
    one, other = servers
    file = one.client.files.create(file=write_rows(tmp_path / "rows.jsonl", 40), purpose="fine-tune")
    assert other.client.files.retrieve(file.id).status == "processed"
    job = one.client.fine_tuning.jobs.create(
        model=tiny_base_folder.name,
        training_file=file.id,
        suffix="bot",
        hyperparameters={"n_epochs": LONG},
        extra_body={"tunery": {"parameters": PARAMETERS}},
    )
    url = f"{other.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    numbers, messages = [], []
    with httpx.stream("GET", url, timeout=600) as events:
        for line in events.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                numbers.append(event["tunery"]["number"])
                messages.append(event["message"])
    ended = time.monotonic()
    assert numbers == list(range(1, len(numbers) + 1))
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has successfully completed", messages
    name = f"ft:{tiny_base_folder.name}:default:bot:{job.id[-12:]}"
    for server in servers:
        answer = server.client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=2
        )
        assert answer.model == name
    print(f"answered by both servers {time.monotonic() - ended:.2f} s after success")
    done = other.client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.fine_tuned_model, len(done.result_files)) == ("succeeded", name, 1)
    lines = other.client.files.content(done.result_files[0]).text.splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [str(step) for step in range(1, len(lines))]
    assert sum(message.startswith("Step ") and "/" in message for message in messages) == len(lines) - 1


def test_a_job_is_cancelled_through_the_other_server(
    servers: list[ServeProcess], tiny_base_folder: Path, tmp_path: Path
) -> None:
    one, other = servers
    file = one.client.files.create(file=write_rows(tmp_path / "rows.jsonl", 40), purpose="fine-tune")
    job = one.client.fine_tuning.jobs.create(
        model=tiny_base_folder.name,
        training_file=file.id,
        extra_body={"tunery": {"parameters": PARAMETERS | {"max_steps": 100_000}}},
    )
    deadline = time.monotonic() + 600
    while other.client.fine_tuning.jobs.retrieve(job.id).to_dict()["tunery"]["step"] is None:  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    other.client.fine_tuning.jobs.cancel(job.id)
    while one.client.fine_tuning.jobs.retrieve(job.id).status != "cancelled":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(NotFoundError):
        one.client.models.retrieve(f"ft:{tiny_base_folder.name}:default::{job.id[-12:]}")
