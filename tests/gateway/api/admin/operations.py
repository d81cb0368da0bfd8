"""Every operation of the admin API, with what it answers and what it refuses."""

from __future__ import annotations

from typing import Any, Protocol

from tests.gateway.api.conftest import Served
from tunery.registry.errors import StorageBusy

__all__ = ["ADMIN_BODIES", "administer"]

ADAPTER = "/admin/v1/adapters/{tenant}/{name}"
ALIAS = f"{ADAPTER}/aliases/{{alias}}"
KEY = "/admin/v1/keys/{key_id}"
ADMIN_BODIES: dict[str, dict[str, Any]] = {
    "/admin/v1/keys": {"tenant": "acme", "scopes": ["infer"]},
    f"{KEY}/rotate": {},
    ALIAS: {"version": 1},
    f"{ALIAS}/rollback": {},
    f"{ADAPTER}/share": {"tenants": ["globex"]},
    f"{ADAPTER}/unshare": {},
}


class Caller(Protocol):
    """Sends a request and checks the answer against the document."""

    async def call(self, method: str, path: str, *, query: str = "", body: object = None, **names: str) -> None:
        """Send one."""


async def administer(caller: Caller, served: Served) -> None:
    """Do everything once with what there is, and with what there is not."""
    registry = served.gateway.registry
    try:
        served.publish("acme/admin", seed=7, alias="production")
        served.publish("acme/admin", seed=8)
        registry.move_alias("acme/admin", "production", 2, actor="test")
        key = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")[0].id
    except (RuntimeError, StorageBusy):
        key = "none"  # everything is broken by now
    place = {"tenant": "acme", "name": "admin"}
    await caller.call("get", "/admin/v1/audit", query="?limit=0")
    for path in ("/admin/v1/adapters", "/admin/v1/audit", "/admin/v1/keys", "/admin/v1/state", "/admin/v1/tenants"):
        await caller.call("get", path)
    for key_id in (key, key, "none"):
        await caller.call("post", f"{KEY}/rotate", body={}, key_id=key_id)
    for path in ("/admin/v1/adapters", "/admin/v1/keys"):
        await caller.call("get", path, query=f"?tenant={'x' * 65}")
    for key_id in (key, "none", "x" * 200):
        await caller.call("post", f"{KEY}/revoke", key_id=key_id)
    for own in (place, {**place, "name": "none"}, {**place, "name": "No"}):
        await caller.call("get", ADAPTER, **own)
        await caller.call("post", f"{ADAPTER}/share", body={"tenants": ["globex"]}, **own)
        await caller.call("post", f"{ADAPTER}/unshare", body={}, **own)
        alias = {**own, "alias": "production"}
        await caller.call("post", ALIAS, body={"version": 9}, **alias)
        await caller.call("post", f"{ALIAS}/rollback", body={}, **alias)
        await caller.call("post", ALIAS, body={"version": 1}, **alias)
        await caller.call("delete", f"{ADAPTER}/versions/{{number}}", number="1", **own)
        await caller.call("delete", f"{ADAPTER}/versions/{{number}}", number="9", **own)
        await caller.call("delete", ALIAS, **alias)
        await caller.call("delete", ALIAS, **alias)
        await caller.call("delete", f"{ADAPTER}/versions/{{number}}", number="1", **own)
    for name in ("acme/docs", "acme/none", "No"):
        for what in ("share", "unshare", "unshare"):
            body = {"adapter": name, **({"tenants": ["globex"]} if what == "share" else {})}
            await caller.call("post", f"/v1/adapters/{what}", body=body)
