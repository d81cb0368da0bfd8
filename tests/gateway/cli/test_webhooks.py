"""`tunery webhooks`, as a process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.forked_process import run_tunery
from tests.gateway.webhooks.receiver import Receiver, Reply, receiving
from tunery.registry.home import Home
from tunery.registry.registry import Registry
from tunery.registry.webhooks.events import append

pytestmark = pytest.mark.slow


@pytest.fixture
def receiver(registry: Registry, home: Home) -> Iterator[Receiver]:
    with receiving() as receiver:
        (home.root / "config.toml").write_text(receiver.config())
        yield receiver


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    return {**os.environ, "TUNERY_HOME": str(home.root), "TUNERY_ACTOR": "tester"}


def test_a_test_is_sent_now_and_its_answer_shown(receiver: Receiver, environment: dict[str, str]) -> None:
    receiver.replies = [Reply(body=b"thank you\x1b[2J"), Reply(status=500, body=b"no")]
    done = run_tunery("webhooks", "test", environment=environment)
    assert (done.returncode, done.stdout) == (0, f"{receiver.url()}  HTTP 200\nthank you␛[2J\n")
    event = receiver.unwrap(receiver.received[0]).to_dict()
    assert (event["type"], event["data"]) == ("tunery.webhook.test", {"actor": "user:tester"})
    failed = run_tunery("webhooks", "test", receiver.url(), environment=environment)
    assert (failed.returncode, failed.stdout) == (6, f"{receiver.url()}  HTTP 500\nno\n")
    unknown = run_tunery("webhooks", "test", "https://other.example/", environment=environment)
    assert unknown.returncode == 3
    assert len(receiver.received) == 2


def test_endpoints_are_listed_with_what_waits(
    receiver: Receiver, registry: Registry, environment: dict[str, str]
) -> None:
    registry.webhooks.configure([receiver.url()])
    for number in range(3):
        with registry._database.write() as connection:
            append(connection, "tunery.alias.moved", {"number": number}, at=registry.queue._clock())
    delivery = registry.webhooks.claim(receiver.url(), kinds=("tunery.alias.moved",))
    assert delivery is not None
    registry.webhooks.settle(delivery, "given_up", error="HTTP 410")
    (listed,) = json.loads(run_tunery("webhooks", "list", "--json", environment=environment).stdout)
    assert (listed["url"], listed["pending"], listed["given_up"]) == (receiver.url(), 2, 1)
    done = run_tunery("webhooks", "list", environment=environment)
    assert done.stdout.splitlines()[1].split("\t") == [receiver.url(), "2", "0", "1", "HTTP 410"]
    assert receiver.secret not in done.stdout


def test_without_endpoints_it_says_what_to_do(registry: Registry, environment: dict[str, str]) -> None:
    assert "add [[webhooks.endpoints]]" in run_tunery("webhooks", "list", environment=environment).stderr
    done = run_tunery("webhooks", "test", environment=environment)
    assert (done.returncode, "add [[webhooks.endpoints]]" in done.stderr) == (3, True)
