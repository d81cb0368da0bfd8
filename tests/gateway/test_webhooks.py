"""Webhooks of real servers: signed, sent for what any process does, and never lost with a process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import msgspec
import pytest
from openai.types.webhooks import FineTuningJobCancelledWebhookEvent, FineTuningJobSucceededWebhookEvent

from tests.forked_process import run_tunery
from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tests.gateway.webhooks.receiver import Receiver, Reply, receiving, until
from tunery.gateway.engine.models.native.kernels import load_kernels
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.testing import write_rows
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def configured(tmp_path: Path, tiny_base_folder: Path, receiver: Receiver) -> Home:
    """A home with two versions of acme/support, whose servers send webhooks to the receiver."""
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="base")
        publish(registry, base, random_loras(tmp_path, tiny_base_folder, 2), name=lambda number: "acme/support")
    (home.root / "config.toml").write_text(receiver.config())
    return home


def serving(home: Home, folder: Path) -> AbstractContextManager[ServeProcess]:
    folder.mkdir()
    return start_server(folder, home, "base", *TINY, "--no-worker")


def move(home: Home, number: int) -> None:
    """Move an alias with a command, which is another process than the server."""
    environment = os.environ | {"TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "jane"}
    done = run_tunery("adapters", "alias", "acme/support", "production", str(number), environment=environment)
    assert done.returncode == 0, done.stderr


def test_what_a_command_and_a_client_do_is_sent(configured: Home, receiver: Receiver, tmp_path: Path) -> None:
    with serving(configured, tmp_path / "a") as server:
        move(configured, 1)
        (moved,) = receiver.wait(1)
        assert receiver.unwrap(moved).to_dict()["data"] == {
            "adapter": "acme/support", "alias": "production", "before": None, "after": 1, "kind": "move", "actor": "user:jane",
        }  # fmt: skip
        file = server.client.files.create(file=write_rows(tmp_path / "rows.jsonl", 20), purpose="fine-tune")
        job = server.client.fine_tuning.jobs.create(model="base", training_file=file.id)
        server.client.fine_tuning.jobs.cancel(job.id)
        event = receiver.unwrap(receiver.wait(2)[1])
        assert isinstance(event, FineTuningJobCancelledWebhookEvent)
        assert server.client.fine_tuning.jobs.retrieve(event.data.id).status == "cancelled"

        def scraped(line: str) -> bool:
            return line in httpx.get(f"{server.url}/metrics").text.splitlines()

        until(lambda: scraped('tunery_webhook_attempts_total{outcome="delivered"} 2.0'))
        assert scraped('tunery_webhook_attempts_total{outcome="given_up"} 0.0')
        until(lambda: scraped("tunery_webhooks_pending 0.0"))


def test_what_happens_without_a_server_is_sent_by_the_next_one(
    configured: Home, receiver: Receiver, tmp_path: Path
) -> None:
    with serving(configured, tmp_path / "a") as server:
        server.process.kill()
    move(configured, 1)
    assert receiver.received == []
    with serving(configured, tmp_path / "b"):
        assert receiver.unwrap(receiver.wait(1)[0]).to_dict()["data"]["after"] == 1


def test_a_server_that_is_killed_while_it_sends_leaves_it_to_the_next_one(
    configured: Home, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.replies = [Reply(seconds=600.0)]
    with serving(configured, tmp_path / "a") as server:
        move(configured, 1)
        receiver.wait(1)
        server.process.kill()
    with serving(configured, tmp_path / "b"):
        first, again = receiver.wait(2)
        assert (first.body, first.headers["webhook-id"]) == (again.body, again.headers["webhook-id"])
        receiver.unwrap(again)


def test_a_server_without_its_secret_does_not_start(configured: Home, receiver: Receiver) -> None:
    (configured.root / "config.toml").write_text(receiver.config().replace(receiver.secret, "env:NO_SUCH_SECRET"))
    words = ("serve", "--base", "base", "--port", "0", *TINY, "--no-worker")
    done = run_tunery(*words, environment=os.environ | {"TUNERY_HOME": str(configured.root)}, forked=False)
    assert done.returncode == 2
    assert "the variable NO_SUCH_SECRET must be whsec_ and base64" in done.stderr


@pytest.mark.soak
def test_the_end_of_a_job_on_the_real_base_is_sent(
    tmp_path: Path, base_folder: Path, base_cache: Home, receiver: Receiver
) -> None:
    home = Home(tmp_path / "home")
    with Registry.open(base_cache) as cache, Registry.open(home) as registry:
        registry.add_base(msgspec.structs.replace(cache.base("smollm2-135m"), name="base"))
    (home.root / "config.toml").write_text(receiver.config())
    with start_server(tmp_path, home, "base", "--quant", "nf4" if load_kernels() else "none") as server:
        file = server.client.files.create(file=write_rows(tmp_path / "rows.jsonl", 12), purpose="fine-tune")
        job = server.client.fine_tuning.jobs.create(
            model="base",
            training_file=file.id,
            extra_body={"tunery": {"parameters": {"max_steps": 2}, "force": True, "alias": "canary"}},
        )
        deadline = time.monotonic() + 1000
        while len(receiver.received) < 2:
            assert time.monotonic() < deadline
            assert server.client.fine_tuning.jobs.retrieve(job.id).status != "failed"
            time.sleep(0.5)
        moved, ended = (receiver.unwrap(request) for request in receiver.received)
        assert moved.to_dict()["data"]["kind"] == "publish"
        assert isinstance(ended, FineTuningJobSucceededWebhookEvent)
        assert server.client.fine_tuning.jobs.retrieve(ended.data.id).fine_tuned_model is not None
