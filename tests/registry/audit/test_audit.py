"""The audit log: every change with who made it, in its transaction, for good, and without secrets."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from tests.registry.conftest import Publish
from tunery.registry import Base
from tunery.registry.audit.entry import AuditEntry
from tunery.registry.audit.log import AuditFilter
from tunery.registry.audit.origin import Origin, acting, current_origin, local_actor
from tunery.registry.errors import Conflict, NotFound, UnknownName
from tunery.registry.home import Home
from tunery.registry.keys.api_key import split_token
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry


@pytest.fixture(autouse=True)
def actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_ACTOR", "jane")


def entries(registry: Registry, **wanted: object) -> list[AuditEntry]:
    """The entries, oldest first."""
    found, more = registry.audit.page(AuditFilter(**wanted), limit=1000)  # type: ignore[arg-type]
    assert not more
    return found[::-1]


def said(registry: Registry, **wanted: object) -> list[tuple[str, str, str, str]]:
    return [(each.actor, each.action, each.target, each.tenant) for each in entries(registry, **wanted)]


def test_keys_are_recorded_without_their_secrets(registry: Registry, home: Home) -> None:
    key, token = registry.keys.create(tenant="acme", scopes=("infer",), label="shop", actor="user:jane")
    new, other = registry.keys.rotate(key.id, actor=f"key:{key.id}", overlap=60)
    registry.keys.revoke(new.id)
    registry.keys.revoke(new.id)  # it was revoked before, so nothing changes
    assert said(registry, action="key") == [
        ("user:jane", "key.create", key.id, "acme"),
        (f"key:{key.id}", "key.rotate", key.id, "acme"),
        ("user:jane", "key.revoke", new.id, "acme"),
    ]
    created, rotated, revoked = entries(registry, action="key")
    assert created.after == {"label": "shop", "scopes": ["infer"], "adapters": [], "expires_at": None}
    assert rotated.label == "shop"
    assert rotated.after is not None
    assert rotated.after["id"] == new.id
    assert revoked.before == created.after
    text = msgspec.json.encode(entries(registry)).decode()
    for secret in (token, other, key.secret_hash, new.secret_hash):
        assert secret not in text
        assert (split_token(secret) or ("", secret))[1] not in text


def test_versions_aliases_and_sharing_are_recorded(registry: Registry, publish: Publish) -> None:
    publish(alias="production")
    publish(seed=1)
    registry.move_alias("acme/support", "production", 2, actor="key:abc", reason="better")
    registry.rollback("acme/support", actor="key:abc")
    registry.sharing.share("acme/support", ["globex"], actor="key:abc")
    registry.drop_alias("acme/support", "production", actor="key:abc")
    for number in (1, 2):
        registry.remove(f"acme/support@{number}", actor="key:abc")
    assert [each.action for each in entries(registry, tenant="acme")] == [
        "version.publish", "alias.publish", "version.publish", "alias.move", "alias.rollback", "adapter.share",
        "alias.drop", "version.delete", "version.delete", "adapter.unshare",
    ]  # fmt: skip
    moved = entries(registry, action="alias.move")[0]
    assert (moved.actor, moved.target) == ("key:abc", "acme/support@production")
    assert (moved.before, moved.after) == ({"version": 1}, {"version": 2, "reason": "better"})
    assert [each.action for each in entries(registry, actor="user:jane")] == ["base.add"]


def test_jobs_and_files_are_recorded(registry: Registry, base: Base, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"{}\n")
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(
        adapter="acme/support", trainer="lora", base=base.digest, data=(file.id,), actor="key:abc"
    )  # fmt: skip
    job = registry.queue.submit(request, tenant="acme", idempotency_key="once")
    assert registry.queue.submit(request, tenant="acme", idempotency_key="once").id == job.id
    with acting(Origin(actor="key:def", request_id="request-1", source="192.0.2.7")):
        registry.queue.request(job.id, "pause")
        registry.queue.resume(job.id)
        registry.queue.request(job.id, "cancel")
        with pytest.raises(Conflict):
            registry.queue.request(job.id, "cancel")
        registry.data_files.delete(file.id)
    assert said(registry, tenant="acme") == [
        ("key:abc", "job.create", job.id, "acme"),
        ("key:def", "job.pause", job.id, "acme"),
        ("key:def", "job.resume", job.id, "acme"),
        ("key:def", "job.cancel", job.id, "acme"),
        ("key:def", "file.delete", file.id, "acme"),
    ]
    deleted = entries(registry, action="file.delete")[0]
    assert (deleted.request_id, deleted.source) == ("request-1", "192.0.2.7")
    assert deleted.before == {"sha256": file.sha256, "purpose": "fine-tune"}


def test_an_expired_file_is_nobodys_deed(registry: Registry, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"{}\n")
    registry.data_files.add(rows, tenant="acme", purpose="batch", name="rows.jsonl", expires_after=-1.0)
    assert registry.data_files.expire() == 1
    assert [each.actor for each in entries(registry)] == ["tunery"]


def test_endpoints_of_webhooks_are_recorded_by_their_hosts_alone(registry: Registry) -> None:
    registry.webhooks.configure(["https://hooks.example/services/T0KEN?key=S3CRET"])
    registry.webhooks.configure(["https://hooks.example/services/T0KEN?key=S3CRET"])
    (entry,) = entries(registry)
    assert (entry.action, entry.before, entry.after) == (
        "webhooks.set", {"hosts": []}, {"hosts": ["https://hooks.example"]},
    )  # fmt: skip


def test_what_fails_is_not_recorded(registry: Registry, publish: Publish) -> None:
    publish()
    before = entries(registry)
    with pytest.raises(NotFound):
        registry.move_alias("acme/support", "production", 9, actor="key:abc")
    with pytest.raises(NotFound):
        registry.keys.revoke("none")
    with pytest.raises(NotFound):
        registry.sharing.share("acme/none", ["globex"], actor="key:abc")
    assert entries(registry) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "INSERT OR REPLACE INTO audit_log SELECT id, at, tenant, 'nobody', label, action, target, before, after, request_id, source FROM audit_log",
    ],
)
def test_the_database_refuses_to_change_it(statement: str, registry: Registry, home: Home) -> None:
    registry.keys.create(tenant="acme", scopes=("infer",), actor="user:jane")
    before = entries(registry)
    with closing(sqlite3.connect(home.database)) as database, pytest.raises(sqlite3.Error, match="append-only"):
        database.execute(statement)
    assert entries(registry) == before


def test_it_is_read_by_pages_newest_first(registry: Registry) -> None:
    for _ in range(5):
        registry.keys.create(tenant="acme", scopes=("infer",), actor="user:jane")
    ids, before, more = [], None, True
    while more:
        page, more = registry.audit.page(AuditFilter(), before=before, limit=2)
        ids += [entry.id for entry in page]
        before = page[-1].id
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 5
    at = entries(registry)[2].at
    assert len(entries(registry, until=at)) + len(entries(registry, since=at)) == 5
    assert entries(registry, actor="jane") == entries(registry, tenant="globex") == []
    with pytest.raises(UnknownName, match=r"did you mean 'key\.create'"):
        registry.audit.page(AuditFilter(action="key.creat"), limit=1)


def test_threads_and_requests_have_origins_of_their_own() -> None:
    seen = []
    with acting(Origin(actor="key:abc")):
        thread = threading.Thread(target=lambda: seen.append(current_origin().actor))
        thread.start()
        thread.join()
        seen.append(current_origin().actor)
    assert seen == [local_actor(), "key:abc"]
    assert local_actor() == "user:jane"
