"""How many series there can be: the busiest tenants and the latest versions have their own, the rest share one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tunery.gateway.metrics.recorder import MAX_CODES, Metrics, Subject
from tunery.gateway.metrics.row import NO_TENANT, OTHER_TENANTS
from tunery.gateway.metrics.tenants import MAX_CANDIDATES, RANK_SECONDS, TenantLabels
from tunery.gateway.metrics.versions import MAX_VERSIONS

ORDER = ("adapter", "tenant", "status", "version", "code", "result", "le")


def series(metrics: Metrics, prefix: str) -> dict[tuple[str, ...], float]:
    """The samples of the metrics that begin so, by name and values of their labels in ORDER."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *(sample.labels[label] for label in ORDER if label in sample.labels)): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith(prefix) and not sample.name.endswith("_created")
    }


def ask(metrics: Metrics, tenant: str, *, version: int | None = None, outcome: str = "stop", times: int = 1) -> None:
    """Count requests of a tenant that ended."""
    subject = Subject(metrics.label("acme/support"), tenant, version)
    for _ in range(times):
        metrics.count_prompt(subject, tokens=3)
        metrics.observe_token(subject, first=True, seconds=0.1)
        metrics.count_finished(subject, outcome=outcome, tokens=2, seconds=0.2)


def test_a_thousand_tenants_beyond_those_with_series_add_one() -> None:
    metrics = Metrics(tenants=2)
    for tenant in ("acme", "globex"):
        ask(metrics, tenant)
    before = set(series(metrics, "tunery_tenant_requests_total"))
    for number in range(1000):
        ask(metrics, f"junk-{number}")
        metrics.count_refused(Subject("base", f"more-{number}"), code="overloaded", count=1)
    counted = series(metrics, "tunery_tenant_requests_total")
    added = {labels[1] for labels in set(counted) - before}
    assert added == {OTHER_TENANTS}
    assert counted["tunery_tenant_requests_total", OTHER_TENANTS, "answered"] == 1000
    assert counted["tunery_tenant_requests_total", OTHER_TENANTS, "refused"] == 1000


def test_nobody_and_the_rest_cannot_be_taken_for_a_tenant() -> None:
    metrics = Metrics(tenants=5)
    for tenant in ("", "other", "none"):
        ask(metrics, tenant)
    tenants = {labels[1] for labels in series(metrics, "tunery_tenant_requests_total")}
    assert tenants == {NO_TENANT, "other", "none"}


def test_no_tenant_has_a_series_where_none_is_to_have_one() -> None:
    metrics = Metrics(tenants=0)
    ask(metrics, "acme")
    metrics.update_tenants({"acme": 1})
    assert {labels[1] for labels in series(metrics, "tunery_tenant_")} == {OTHER_TENANTS}


def test_a_busier_tenant_takes_the_series_of_the_quietest() -> None:
    now = [0.0]
    labels = TenantLabels(2, clock=lambda: now[0])
    for tenant, times in (("acme", 10), ("globex", 2), ("initech", 50), ("hooli", 3)):
        for _ in range(times):
            labels.count(tenant)
    assert labels.rank() == []
    now[0] += RANK_SECONDS
    assert labels.rank() == ["globex"]
    assert [labels.label(tenant) for tenant in ("acme", "initech", "globex", "hooli")] == [
        "acme", "initech", OTHER_TENANTS, OTHER_TENANTS,
    ]  # fmt: skip
    now[0] += RANK_SECONDS
    assert labels.rank() == [], "two alike do not swap"


def test_a_tenant_that_loses_its_series_leaves_none_behind() -> None:
    now = [0.0]
    metrics = Metrics(tenants=1)
    metrics._tenants = TenantLabels(1, clock=lambda: now[0])
    ask(metrics, "quiet")
    ask(metrics, "busy", times=9)
    now[0] += RANK_SECONDS
    metrics.update_tenants({"busy": 2, "quiet": 1})
    ask(metrics, "busy")
    shown = series(metrics, "tunery_tenant_")
    assert not [labels for labels in shown if "quiet" in labels]
    assert shown["tunery_tenant_requests_total", "busy", "answered"] == 1
    assert shown["tunery_tenant_requests_in_flight", OTHER_TENANTS] == 1


def test_the_memory_for_tenants_has_a_bound() -> None:
    labels = TenantLabels(1, clock=lambda: 0.0)
    for number in range(3 * MAX_CANDIDATES):
        labels.count(f"tenant-{number}")
    assert len(labels._others) == MAX_CANDIDATES


def test_versions_have_series_until_others_answer() -> None:
    metrics = Metrics()
    for number in range(1, MAX_VERSIONS + 3):
        ask(metrics, "acme", version=number, outcome="stop" if number % 2 else "engine_failed")
    shown = series(metrics, "tunery_version_requests_total")
    assert {int(labels[2]) for labels in shown} == set(range(3, MAX_VERSIONS + 3))
    assert shown["tunery_version_requests_total", "acme/support", "3", "answered"] == 1
    assert shown["tunery_version_requests_total", "acme/support", "4", "failed"] == 1
    assert shown["tunery_version_requests_total", "acme/support", "4", "answered"] == 0
    assert len({labels[1:3] for labels in series(metrics, "tunery_version_")}) == MAX_VERSIONS


def test_codes_of_errors_have_a_bound() -> None:
    metrics = Metrics()
    for number in range(2 * MAX_CODES):
        metrics.count_response("/v1/models", 400, f"code-{number}")
    codes = {labels[2] for labels in series(metrics, "tunery_http_errors_total")}
    assert len(codes) <= MAX_CODES + 1
    assert "other" in codes
