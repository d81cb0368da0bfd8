"""What a tenant may do with an adapter that another shares with it: ask it, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tests.security.test_tenants import ROWS, Tenant

SHARED = "acme/support"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def names(tenant: Tenant) -> list[str]:
    return [model["id"] for model in (await tenant.http.get("/v1/models")).json()["data"]]


@pytest.fixture
async def tenants(served: Served) -> AsyncIterator[dict[str, Tenant]]:
    made = {name: Tenant(served, name) for name in ("acme", "globex", "initech")}
    yield made
    for tenant in made.values():
        await tenant.http.aclose()


async def test_a_shared_adapter_can_be_asked_and_nothing_else(served: Served, tenants: dict[str, Tenant]) -> None:
    acme, globex, initech = tenants.values()
    served.publish(SHARED, alias="production")
    served.publish("acme/secret")
    assert (await globex.chat(SHARED)).status_code == 404
    refused = await globex.http.post("/v1/adapters/share", json={"adapter": SHARED, "tenants": ["globex"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    shared = await acme.http.post("/v1/adapters/share", json={"adapter": SHARED, "tenants": ["globex"]})
    assert (shared.status_code, shared.json()["tenants"]) == (200, ["globex"])

    async def works() -> bool:
        return (await globex.chat(SHARED)).status_code == 200

    await until(works)
    # It is listed by whom it is shared with, and by nobody else.
    assert await names(globex) == ["tiny", SHARED]
    assert await names(initech) == ["tiny"]
    assert (await initech.chat(SHARED)).status_code == 404
    assert (await globex.chat("acme/secret")).status_code == 404
    assert (await globex.chat(f"{SHARED}@production")).status_code == 200
    assert [card["id"] for card in (await globex.http.get("/v1/adapters")).json()["data"]] == [SHARED]

    # Who it is shared with may not change, pass on, copy or delete it.
    for path, body, code in (
        ("/v1/adapters/load", {"adapter": SHARED, "pin": True}, "adapter_not_allowed"),
        ("/v1/adapters/unload", {"adapter": SHARED}, "adapter_not_allowed"),
        ("/v1/adapters/share", {"adapter": SHARED, "tenants": ["initech"]}, "adapter_not_allowed"),
        ("/v1/adapters/unshare", {"adapter": SHARED}, "adapter_not_allowed"),
    ):
        answer = await globex.http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    file = (
        await globex.http.post("/v1/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": "fine-tune"})
    ).json()["id"]
    for more in (
        {"model": SHARED},
        {"model": "tiny", "tunery": {"from": SHARED}},
        {"model": "tiny", "tunery": {"adapter": SHARED}},
    ):
        answer = await globex.http.post("/v1/fine_tuning/jobs", json={"training_file": file, **more})
        assert answer.status_code == 400, answer.text
        assert SHARED in answer.text
        assert "shared for inference" in answer.text or "may not train" in answer.text
    served.gateway.registry.move_alias(SHARED, "canary", 1, actor="test")
    assert (await globex.http.delete(f"/v1/models/{SHARED}")).status_code == 404
    assert served.gateway.registry.adapters() == ["acme/secret", SHARED]

    # Within a second of the end, it does not exist any more.
    assert (await acme.http.post("/v1/adapters/unshare", json={"adapter": SHARED})).json()["tenants"] == []

    async def is_gone() -> bool:
        return (await globex.chat(SHARED)).status_code == 404

    await until(is_gone)
    missing = await globex.chat("acme/suppprt")
    assert (await globex.chat(SHARED)).text == missing.text.replace("acme/suppprt", SHARED)
    assert await names(globex) == ["tiny"]


async def test_a_key_for_some_adapters_alone_is_not_for_those_that_others_share(
    served: Served, tenants: dict[str, Tenant]
) -> None:
    served.publish(SHARED)
    served.publish("globex/own")
    served.gateway.registry.sharing.share(SHARED, ["all"], actor="test")
    _, token = served.gateway.registry.keys.create(
        tenant="globex", scopes=("infer",), adapters=("globex/own",), actor="test"
    )

    async def everybody() -> bool:
        return (await tenants["initech"].chat(SHARED)).status_code == 200

    await until(everybody)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, verify=False) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["tiny", "globex/own"]
        assert (await http.get(f"/v1/models/{SHARED}")).status_code == 404


async def test_each_tenant_has_a_prefix_cache_of_its_own(served: Served, tenants: dict[str, Tenant]) -> None:
    acme, globex, _ = tenants.values()
    served.publish(SHARED)
    sharing = served.gateway.registry.sharing
    sharing.share(SHARED, ["globex"], actor="test")

    async def salts(*models: str) -> list[tuple[str, str]]:
        """Tenant and salt of each request, by acme and then by globex."""
        served.engine.requests.clear()
        for model in models:
            for tenant in (acme, globex):
                assert (await tenant.chat(model)).status_code == 200
        return [(request.tenant, request.cache_salt) for request in served.engine.requests]

    async def works() -> bool:
        return (await globex.chat(SHARED)).status_code == 200

    await until(works)
    alone = [("acme", "acme"), ("globex", "globex")]
    assert await salts("tiny", SHARED) == alone + alone
    sharing.share(SHARED, ["globex"], actor="test", share_prefixes=True)

    async def together() -> bool:
        return (await salts(SHARED)) == [("acme", SHARED), ("globex", SHARED)]

    await until(together)
    assert await salts("tiny") == alone, "the bare base is never shared"
