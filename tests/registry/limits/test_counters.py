"""The counters that gateways share in the database."""

from __future__ import annotations

import pytest

from tunery.registry.configuration.limits import Limits
from tunery.registry.errors import InvalidInput, NotFound, UnknownName
from tunery.registry.limits.counters import HOLD_SECONDS, Claim, Exchange, Exchanged, Hold, Return
from tunery.registry.registry import Registry

ACME = "tenant:acme"


def claim(registry: Registry, need: int, most: int, *, now: float, limit: int = 100) -> int:
    asked = Exchange(owner="a", now=now, claims=[Claim(ACME, "requests", need, most, limit)])
    return registry.limit_counters.exchange(asked).claims[0].amount


def hold(registry: Registry, owner: str, need: int, most: int, *, now: float) -> int:
    asked = Exchange(owner=owner, now=now, holds=[Hold(ACME, need, most, 10)])
    return registry.limit_counters.exchange(asked).holds[0]


def test_claims_never_exceed_the_limit_and_end_with_their_minute(registry: Registry) -> None:
    assert [claim(registry, 10, 60, now=1000), claim(registry, 10, 60, now=1001), claim(registry, 1, 5, now=1002)] == [
        60,
        40,
        0,
    ]
    back: Exchanged = registry.limit_counters.exchange(
        Exchange(owner="a", now=1003, returns=[Return(ACME, "requests", 200, 7)])
    )
    assert back == Exchanged(claims=[], holds=[])
    assert claim(registry, 1, 50, now=1004) == 7
    assert claim(registry, 1, 50, now=1064.9) == 0
    assert claim(registry, 1, 50, now=1065) == 50
    # A machine that has started again: what is from the future is from before.
    assert claim(registry, 1, 100, now=3) == 100


def test_what_a_dead_gateway_holds_is_free_after_a_while(registry: Registry) -> None:
    assert hold(registry, "a", 1, 4, now=0) == 4
    assert hold(registry, "b", 1, 8, now=1) == 6
    assert hold(registry, "b", 7, 9, now=2) == 6
    assert hold(registry, "a", 0, 2, now=3) == 2
    assert hold(registry, "b", 7, 9, now=4) == 8
    assert hold(registry, "b", 9, 20, now=3 + HOLD_SECONDS + 0.1) == 10


def test_counting_is_no_change_for_those_who_watch(registry: Registry) -> None:
    before = registry.changes()
    claim(registry, 1, 1, now=0)
    assert registry.changes() == before
    registry.limits.set("acme", {"requests_per_minute": 5}, actor="test")
    assert registry.changes() != before


def test_limits_are_set_over_the_configured_ones_and_cleared(registry: Registry) -> None:
    limits, default = registry.limits, Limits(requests_per_minute=9, storage_bytes=4)
    key, _ = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    limits.set("acme", {"requests_per_minute": "60", "queue_share": 0.5}, actor="test")
    limits.set("acme", {"requests_per_minute": 0, "tokens_per_month": 2**50}, actor="test")
    limits.set("acme", {"tokens_per_minute": 7}, key=key.id, actor="test")
    found = limits.all()
    assert set(found) == {("acme", ""), ("acme", key.id)}
    assert found["acme", ""].over(default) == Limits(queue_share=0.5, tokens_per_month=2**50, storage_bytes=4)
    assert found["acme", key.id].over(Limits()) == Limits(tokens_per_minute=7)
    assert limits.clear("acme", ["queue_share"]) == 1
    assert limits.clear("acme") == 2
    assert set(limits.all()) == {("acme", key.id)}


@pytest.mark.parametrize(
    ("tenant", "key", "values", "error"),
    [
        ("Acme", "", {"requests_per_minute": 1}, InvalidInput),
        ("acme", "", {"requests_per_minute": -1}, InvalidInput),
        ("acme", "", {"requests_per_minute": 1.5}, InvalidInput),
        ("acme", "", {"queue_share": 2}, InvalidInput),
        ("acme", "", {"requests_per_minutes": 1}, UnknownName),
        ("acme", "none", {"requests_per_minute": 1}, NotFound),
        ("acme", "none", {"storage_bytes": 1}, UnknownName),
    ],
)
def test_limits_that_cannot_be_are_refused(
    registry: Registry, tenant: str, key: str, values: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        registry.limits.set(tenant, values, key=key, actor="test")
    assert registry.limits.all() == {}
