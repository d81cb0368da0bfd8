"""Stored responses: kept for their time, seen by everyone on the home, and only by their tenant."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.registry.errors import NotFound
from tunery.registry.home import Home
from tunery.registry.registry import Registry

BODY: dict[str, Any] = {"id": "resp_1", "output": [{"type": "message", "text": "Grüße \u0000 👋"}], "top_p": 0.9}
ITEMS: list[dict[str, Any]] = [{"id": "msg_1", "content": [None, True, 1]}]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def add(registry: Registry, response_id: str, *, keep_seconds: float = 10.0) -> None:
    registry.responses.add(response_id, tenant="acme", body=BODY, items=ITEMS, keep_seconds=keep_seconds)


def test_a_response_is_what_was_stored_also_after_a_restart_and_in_another_process(home: Home) -> None:
    with Registry.open(home) as one, Registry.open(home) as other:
        add(one, "resp_1")
        assert (
            other.responses.get("resp_1", tenant="acme").body,
            one.responses.get("resp_1", tenant="acme").items,
        ) == (
            BODY,
            ITEMS,
        )
    with Registry.open(home) as again:
        again.responses.delete("resp_1", tenant="acme")
        with pytest.raises(NotFound, match="resp_1"):
            again.responses.get("resp_1", tenant="acme")
        with pytest.raises(NotFound, match="resp_1"):
            again.responses.delete("resp_1", tenant="acme")


def test_another_tenants_response_does_not_exist(home: Home) -> None:
    with Registry.open(home) as registry:
        add(registry, "resp_1")
        assert registry.responses.find(["resp_1", "resp_2"], tenant="globex") == {}
        with pytest.raises(NotFound):
            registry.responses.delete("resp_1", tenant="globex")
        assert set(registry.responses.find(["resp_1", "resp_2"], tenant="acme")) == {"resp_1"}


def test_a_response_whose_time_is_over_is_gone_and_its_row_at_the_next_write(home: Home) -> None:
    clock = Clock()
    with Registry.open(home, clock=clock) as registry:
        add(registry, "resp_1")
        add(registry, "resp_2", keep_seconds=100)
        clock.now += 10
        with pytest.raises(NotFound):
            registry.responses.get("resp_1", tenant="acme")
        with pytest.raises(NotFound):
            registry.responses.delete("resp_1", tenant="acme")
        add(registry, "resp_3")
        clock.now -= 10
        assert set(registry.responses.find(["resp_1", "resp_2", "resp_3"], tenant="acme")) == {"resp_2", "resp_3"}
