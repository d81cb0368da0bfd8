"""A tenant sees, uses and learns nothing of another's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.gateway.api.conftest import Served

ROW = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
ROWS = b"".join(ROW.replace(b'"hi"', b'"hi %d"' % number) for number in range(12))
SECRET = "globex/secret-plan"


class Tenant:
    """A tenant's client."""

    def __init__(self, served: Served, name: str, *, scopes: tuple[str, ...] = ("infer", "train", "publish")) -> None:
        self.key, token = served.gateway.registry.keys.create(tenant=name, scopes=scopes, actor="test")
        self.http = httpx.AsyncClient(
            base_url=served.url, headers={"authorization": f"Bearer {token}"}, verify=False, timeout=60
        )

    async def chat(self, model: str, **more: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return await self.http.post("/v1/chat/completions", json=body)


@pytest.fixture
async def acme(served: Served) -> AsyncIterator[Tenant]:
    tenant = Tenant(served, "acme")
    yield tenant
    await tenant.http.aclose()


@pytest.fixture
async def globex(served: Served) -> AsyncIterator[Tenant]:
    tenant = Tenant(served, "globex")
    yield tenant
    await tenant.http.aclose()


async def test_another_tenants_adapters_do_not_exist(served: Served, acme: Tenant, globex: Tenant) -> None:
    served.publish("acme/support", alias="production")
    served.publish(SECRET, alias="canary")
    assert (await globex.chat(SECRET)).status_code == 200
    there = await acme.chat(SECRET)
    missing = await acme.chat("globex/secret-plam")
    assert there.status_code == missing.status_code == 404
    assert there.json()["error"]["message"].replace(SECRET, "X") == missing.json()["error"]["message"].replace(
        "globex/secret-plam", "X"
    )
    for name in (SECRET, f"{SECRET}@1", f"{SECRET}@canary", f"acme/support:0.5+{SECRET}:0.5", "globex/secret-pla"):
        answer = await acme.chat(name)
        assert answer.status_code == 404, name
        assert "canary" not in answer.text.replace(f"{SECRET}@canary", "")
    for adapter in (SECRET, f"{SECRET}@1"):
        assert (await acme.chat("tiny", adapter=adapter)).status_code == 404
    assert "globex" not in (await acme.http.get("/v1/models")).text
    assert "globex" not in (await acme.http.get("/v1/adapters")).text
    assert (await acme.http.get(f"/v1/models/{SECRET}")).status_code == 404
    for path in ("load", "unload"):
        assert (await acme.http.post(f"/v1/adapters/{path}", json={"adapter": SECRET})).status_code == 404


async def test_another_tenants_files_jobs_and_batches_do_not_exist(acme: Tenant, globex: Tenant) -> None:
    files = {"file": ("rows.jsonl", ROWS)}
    file = (await globex.http.post("/v1/files", files=files, data={"purpose": "fine-tune"})).json()["id"]
    body = {"model": "tiny", "training_file": file}
    job = (await globex.http.post("/v1/fine_tuning/jobs", json=body)).json()["id"]
    upload = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 9, "mime_type": "text/jsonl"}
    upload_id = (await globex.http.post("/v1/uploads", json=upload)).json()["id"]
    paths = [
        ("GET", f"/v1/files/{file}"), ("GET", f"/v1/files/{file}/content"), ("GET", f"/v1/files/{file}/findings"),
        ("DELETE", f"/v1/files/{file}"), ("GET", f"/v1/fine_tuning/jobs/{job}"),
        ("GET", f"/v1/fine_tuning/jobs/{job}/events"), ("GET", f"/v1/fine_tuning/jobs/{job}/checkpoints"),
        ("POST", f"/v1/fine_tuning/jobs/{job}/cancel"), ("POST", f"/v1/fine_tuning/jobs/{job}/pause"),
        ("POST", f"/v1/fine_tuning/jobs/{job}/resume"), ("POST", f"/v1/uploads/{upload_id}/cancel"),
    ]  # fmt: skip
    for method, path in paths:
        answer = await acme.http.request(method, path)
        assert answer.status_code == 404, (path, answer.text)
    refused = await acme.http.post("/v1/fine_tuning/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_not_found")
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/batches", "/v1/evals"):
        assert (await acme.http.get(path)).json()["data"] == []
    for method, path in paths[:1] + paths[4:6]:
        assert (await globex.http.request(method, path)).status_code == 200


async def test_a_tenant_trains_adapters_of_its_own_only(acme: Tenant, served: Served) -> None:
    served.publish(SECRET)
    files = {"file": ("rows.jsonl", ROWS)}
    file = (await acme.http.post("/v1/files", files=files, data={"purpose": "fine-tune"})).json()["id"]
    for tunery, code in (
        ({"adapter": "globex/mine-now"}, "adapter_not_allowed"),
        ({"adapter": SECRET}, "adapter_not_allowed"),
        ({"from": SECRET}, "model_not_found"),
        ({"from": "globex/none"}, "model_not_found"),
    ):
        body = {"model": "tiny", "training_file": file, "tunery": tunery}
        refused = await acme.http.post("/v1/fine_tuning/jobs", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code), refused.text
    taken = await acme.http.post("/v1/fine_tuning/jobs", json={"model": SECRET, "training_file": file})
    assert (taken.status_code, taken.json()["error"]["code"]) == (400, "model_not_available")
    made = (await acme.http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file})).json()
    assert made["tunery"]["adapter"] == "acme/tiny"
    assert made["organization_id"] == "org-acme"


async def test_a_key_may_be_for_some_adapters_alone(served: Served) -> None:
    served.publish("acme/support")
    served.publish("acme/sales")
    _, token = served.gateway.registry.keys.create(
        tenant="acme", scopes=("infer",), adapters=("acme/support",), actor="test"
    )
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, verify=False) as http:
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["tiny", "acme/support"]
        assert (await http.get("/v1/models/acme/sales")).status_code == 404
