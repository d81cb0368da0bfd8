"""The admin API over HTTP: keys, adapters of all tenants, sharing, the audit log, tenants and the server's state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway.api.conftest import Served, one_document, served, tokenizer_folder
from tests.gateway.api.test_metrics import stats
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.keys.api_key import SCOPES, split_token

__all__ = ["one_document", "served", "tokenizer_folder"]


@pytest.fixture(name="settings")
def serve_settings() -> ServeSettings:
    return ServeSettings(base="tiny", max_batch=4, max_waiting=400)


@pytest.fixture
async def admin(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose key has all scopes."""
    key, token = served.gateway.registry.keys.create(tenant="platform", scopes=SCOPES, label="ops", actor="test")
    headers = {"authorization": f"Bearer {token}", "x-request-id": "request-1"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, verify=False, timeout=60) as http:
        served.admin_key = key.id  # type: ignore[attr-defined]
        yield http


async def test_a_key_from_its_creation_to_its_end(served: Served, admin: httpx.AsyncClient) -> None:
    body = {"tenant": "acme", "scopes": ["infer"], "label": "shop", "adapters": None, "expires_in": 3600}
    made = (await admin.post("/admin/v1/keys", json=body)).json()
    key_id, secret = split_token(made["key"]) or ("", "")
    assert (made["id"], made["tenant"], made["label"], made["state"]) == (key_id, "acme", "shop", "active")
    assert made["created_by"] == f"key:{served.admin_key}"  # type: ignore[attr-defined]
    headers = {"authorization": f"Bearer {made['key']}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, verify=False) as shop:
        assert (await shop.get("/v1/models")).status_code == 200
        assert (await shop.get("/admin/v1/keys")).status_code == 403
    rotated = (await admin.post(f"/admin/v1/keys/{key_id}/rotate", json={"overlap": 0})).json()
    assert (rotated["label"], rotated["expires_at"]) == ("shop", made["expires_at"])
    ended = await admin.post(f"/admin/v1/keys/{key_id}/rotate", json={})
    assert (ended.status_code, ended.json()["error"]["code"]) == (400, "key_ended")
    revoked = await admin.post(f"/admin/v1/keys/{rotated['id']}/revoke")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    listed = (await admin.get("/admin/v1/keys", params={"tenant": "acme"})).json()["data"]
    assert [(key["id"], key["state"]) for key in listed] == [(key_id, "expired"), (rotated["id"], "revoked")]
    log = (await admin.get("/admin/v1/audit", params={"action": "key", "tenant": "acme"})).json()["data"]
    assert [(each["action"], each["label"], each["request_id"], each["source"]) for each in log] == [
        (f"key.{what}", "ops", "request-1", "127.0.0.1") for what in ("revoke", "rotate", "create")
    ]
    for text in ((await admin.get("/admin/v1/keys")).text, (await admin.get("/admin/v1/audit")).text):
        assert secret not in text
        assert "hash" not in text


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"tenant": "acme", "scopes": []}, "invalid_value"),
    ({"tenant": "acme", "scopes": ["root"]}, "invalid_value"),
    ({"tenant": "Acme", "scopes": ["infer"]}, "invalid_name"),
    ({"tenant": "all", "scopes": ["infer"]}, "invalid_name"),
    ({"tenant": "acme", "scopes": ["infer"], "label": "a\nb"}, "invalid_label"),
    ({"tenant": "acme", "scopes": ["infer"], "adapters": ["*"]}, "invalid_name"),
    ({"tenant": "acme", "scopes": ["infer"], "expires_in": -1}, "invalid_value"),
    ({"tenant": "acme", "scopes": ["infer"], "secret": "x"}, "unsupported_parameter"),
    ({"scopes": ["infer"]}, "missing_required_parameter"),
]


async def test_keys_that_are_refused(served: Served, admin: httpx.AsyncClient) -> None:
    for body, code in REFUSED:
        answer = await admin.post("/admin/v1/keys", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert len(served.gateway.registry.keys.list()) == 1


async def test_adapters_of_all_tenants_with_their_aliases(served: Served, admin: httpx.AsyncClient) -> None:
    served.publish("acme/support", alias="production")
    served.publish("acme/support", seed=1)
    served.publish("globex/tickets", seed=2)
    listed = (await admin.get("/admin/v1/adapters")).json()["data"]
    assert [(each["id"], each["version"], each["shared_with"]) for each in listed] == [
        ("acme/support", 1, []), ("globex/tickets", 1, []),
    ]  # fmt: skip
    only = (await admin.get("/admin/v1/adapters", params={"tenant": "globex"})).json()["data"]
    assert [each["id"] for each in only] == ["globex/tickets"]
    alias = "/admin/v1/adapters/acme/support/aliases/production"
    moved = (await admin.post(alias, json={"version": 2, "expected": 1, "reason": "better"})).json()
    assert (moved["before"], moved["after"], moved["kind"]) == (1, 2, "move")
    stale = await admin.post(alias, json={"version": 1, "expected": 1})
    assert (stale.status_code, stale.json()["error"]["code"]) == (400, "alias_moved")
    back = (await admin.post(f"{alias}/rollback", json={})).json()
    assert (back["before"], back["after"], back["kind"]) == (2, 1, "rollback")
    pointed = await admin.delete("/admin/v1/adapters/acme/support/versions/1")
    assert (pointed.status_code, pointed.json()["error"]["code"]) == (400, "version_in_use")
    assert (await admin.delete(alias)).json()["after"] is None
    assert (await admin.delete("/admin/v1/adapters/acme/support/versions/1")).json()["id"] == "acme/support@1"
    shown = (await admin.get("/admin/v1/adapters/acme/support")).json()
    assert [version["version"] for version in shown["versions"]] == [2]
    actor = f"key:{served.admin_key}"  # type: ignore[attr-defined]
    assert [(move["kind"], move["actor"]) for move in shown["history"]] == [
        ("publish", "test"), ("move", actor), ("rollback", actor), ("drop", actor),
    ]  # fmt: skip
    for path in ("acme/none", "acme/support/versions/9", "acme/support/aliases/none"):
        method = "GET" if path == "acme/none" else "DELETE"
        assert (await admin.request(method, f"/admin/v1/adapters/{path}")).status_code == 404
    assert (await admin.delete("/admin/v1/adapters/acme/support/versions/canary")).status_code == 400
    assert (await admin.get("/admin/v1/adapters/acme/..%2f..%2fetc")).status_code in (400, 404)


async def test_sharing_and_its_end(served: Served, admin: httpx.AsyncClient) -> None:
    served.publish("acme/support")
    path = "/admin/v1/adapters/acme/support"
    shared = (await admin.post(f"{path}/share", json={"tenants": ["globex", "initech"]})).json()
    assert (shared["tenants"], shared["share_prefixes"]) == (["globex", "initech"], False)
    shared = (await admin.post(f"{path}/share", json={"tenants": ["all"], "share_prefixes": True})).json()
    assert (shared["tenants"], shared["share_prefixes"]) == (["all"], True)
    assert (await admin.get(path)).json()["sharing"] == shared
    own = await admin.post(f"{path}/share", json={"tenants": ["acme"]})
    assert (own.status_code, own.json()["error"]["code"]) == (400, "invalid_tenants")
    assert (await admin.post(f"{path}/unshare", json={})).json()["tenants"] == []
    assert (await admin.post(f"{path}/unshare", json={})).status_code == 404
    assert (await admin.post("/admin/v1/adapters/acme/none/share", json={"tenants": ["all"]})).status_code == 404


async def test_the_audit_log_comes_in_pages(served: Served, admin: httpx.AsyncClient) -> None:
    for tenant in ("acme", "globex", "acme"):
        served.gateway.registry.keys.create(tenant=tenant, scopes=("infer",), actor="user:jane")
    seen: list[int] = []
    after: dict[str, int] = {}
    while True:
        page = (await admin.get("/admin/v1/audit", params={"actor": "user:jane", "limit": 2, **after})).json()
        seen += [entry["id"] for entry in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 3
    for query in ({"action": "key.destroy"}, {"limit": 0}, {"since": "soon"}):
        assert (await admin.get("/admin/v1/audit", params=query)).status_code == 400, query


async def test_tenants_are_counted(served: Served, admin: httpx.AsyncClient) -> None:
    served.publish("acme/support")
    served.publish("acme/support", seed=1)
    served.gateway.registry.keys.revoke(
        served.gateway.registry.keys.create(tenant="globex", scopes=("infer",), actor="test")[0].id
    )
    files = {"file": ("a.jsonl", b"{}\n")}
    assert (await admin.post("/v1/files", files=files, data={"purpose": "batch"})).status_code == 200
    tenants = {each.pop("id"): each for each in (await admin.get("/admin/v1/tenants")).json()["data"]}
    assert list(tenants) == ["acme", "globex", "platform"]
    assert (tenants["acme"]["adapters"], tenants["acme"]["versions"], tenants["acme"]["active_keys"]) == (1, 2, 0)
    assert tenants["globex"]["active_keys"] == 0
    assert (tenants["platform"]["active_keys"], tenants["platform"]["files"]) == (1, 1)
    assert tenants["platform"]["file_bytes"] == 3


async def test_the_servers_state(served: Served, admin: httpx.AsyncClient) -> None:
    served.engine.report(stats())
    state = (await admin.get("/admin/v1/state")).json()
    assert (state["draining"], state["in_flight"], state["base"]) == (False, 0, "tiny")
    assert state["engine"]["state"] == "ready"
    assert {each["adapter"] for each in state["engine"]["resident"]} == {each.name for each in stats().resident}
    served.gateway.draining = True
    served.engine.die()
    state = (await admin.get("/admin/v1/state")).json()
    assert (state["draining"], state["engine"]["state"] != "ready") == (True, True)


async def test_what_is_done_at_once_is_recorded_under_the_right_request(
    served: Served, admin: httpx.AsyncClient
) -> None:
    """Requests that are answered at the same time do not take each other's ids."""

    async def create(number: int) -> tuple[str, str]:
        body = {"tenant": f"t{number}", "scopes": ["infer"]}
        made = await admin.post("/admin/v1/keys", json=body, headers={"x-request-id": f"request-{number}"})
        return made.json()["id"], f"request-{number}"

    made = await asyncio.gather(*(create(number) for number in range(12)))
    log = (await admin.get("/admin/v1/audit", params={"action": "key.create"})).json()["data"]
    by_key = {entry["target"]: entry["request_id"] for entry in log}
    assert {key: by_key[key] for key, _ in made} == dict(made)
