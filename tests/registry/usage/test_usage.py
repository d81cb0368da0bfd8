"""Records of usage and their sums, which always agree."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunery.registry.registry import Registry
from tunery.registry.usage.records import TRAINING, UsageQuery, UsageRecord, UsageSum

CHAT = "/v1/chat/completions"
COUNTS = st.integers(min_value=0, max_value=10**9)
RECORDS = st.lists(
    st.builds(
        UsageRecord,
        at=st.floats(min_value=0, max_value=20_000),
        tenant=st.sampled_from(["acme", "globex"]),
        key=st.sampled_from(["", "k1", "k2"]),
        model=st.sampled_from(["tiny", "acme/a@1"]),
        endpoint=st.sampled_from([CHAT, "/v1/embeddings", TRAINING]),
        batch=st.booleans(),
        input_tokens=COUNTS,
        cached_tokens=COUNTS,
        output_tokens=COUNTS,
        milliseconds=COUNTS,
    ),
    max_size=12,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(RECORDS, max_size=3))
def test_sums_by_the_hour_are_those_of_the_records(registry: Registry, flushes: list[list[UsageRecord]]) -> None:
    registry.usage.forget(before=1e9)
    before = registry.usage.sums(UsageQuery(start=0, end=10**6))
    for records in flushes:
        registry.usage.add(records)
    everything = [record for records in flushes for record in records]
    query = UsageQuery(start=0, end=10**6)
    after = registry.usage.sums(query)
    for name in ("input_tokens", "cached_tokens", "output_tokens", "milliseconds"):
        total = sum(getattr(each, name) for each in after) - sum(getattr(each, name) for each in before)
        assert total == sum(getattr(record, name) for record in everything)
    exact = registry.usage.sums(UsageQuery(start=0, end=10**6, width=60, group=("tenant",)))
    assert sum(each.requests for each in exact) == len(everything)
    assert sum(each.input_tokens for each in exact if each.tenant == "acme") == sum(
        record.input_tokens for record in everything if record.tenant == "acme"
    )


def record(at: float, **fields: object) -> UsageRecord:
    given = {"tenant": "acme", "model": "tiny", "endpoint": CHAT, "input_tokens": 3, "output_tokens": 4} | fields
    return UsageRecord(at=at, **given)  # type: ignore[arg-type]


def test_sums_are_grouped_and_chosen_and_outlive_their_records(registry: Registry) -> None:
    usage = registry.usage
    usage.add([record(3600), record(3700, key="k"), record(7200, tenant="globex"), record(7300, batch=True)])
    query = UsageQuery(start=3600, end=10_800, width=3600, group=("tenant",))
    assert usage.sums(query) == [
        UsageSum(start=3600, tenant="acme", requests=2, input_tokens=6, output_tokens=8),
        UsageSum(start=7200, tenant="acme", requests=1, input_tokens=3, output_tokens=4),
        UsageSum(start=7200, tenant="globex", requests=1, input_tokens=3, output_tokens=4),
    ]
    assert [each.requests for each in usage.sums(UsageQuery(start=0, end=10_800, keys=("k",)))] == [1]
    assert [each.requests for each in usage.sums(UsageQuery(start=0, end=10_800, batch=True))] == [1]
    assert [each.requests for each in usage.sums(UsageQuery(start=0, end=10_800, models=("none",)))] == []
    assert usage.forget(before=7250) == 3
    assert [each.requests for each in usage.sums(UsageQuery(start=0, end=10_800))] == [4]
    assert [each.start for each in usage.sums(UsageQuery(start=0, end=10_800, width=60))] == [7260]


def test_a_month_is_read_once_and_then_what_was_added(registry: Registry) -> None:
    usage = registry.usage
    usage.add([record(100), record(4000, key="k")])
    totals = usage.tokens_between(3600, 7200)
    assert totals.tokens == {("acme", "k"): 7}
    assert usage.tokens_after(totals.number, start=3600, end=7200).tokens == {}
    usage.add([record(4100), record(200), record(4200, tenant="globex", endpoint=TRAINING, milliseconds=2500)])
    later = usage.tokens_after(totals.number, start=3600, end=7200)
    assert later.tokens == {("acme", ""): 7, ("globex", ""): 7}
    assert usage.compute_seconds("globex", start=3600) == 2.5
    assert usage.compute_seconds("acme", start=3600) == 0
