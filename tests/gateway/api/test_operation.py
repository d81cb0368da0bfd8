"""The operators' endpoints: adapters in memory, health, and the documentation page."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import stats
from tunery.gateway.engine.messages import Resident
from tunery.registry.errors import ArtifactRefused


async def call(served: Served, method: str, path: str, **options: object) -> httpx.Response:
    async with httpx.AsyncClient(verify=False) as client:
        return await client.request(method, served.url + path, **options)  # type: ignore[arg-type]


@pytest.mark.slow
async def test_the_adapter_list_shows_what_names_mean_and_what_is_resident(served: Served) -> None:
    served.publish("acme/support", seed=1, alias="production")
    served.publish("acme/support", seed=2, alias="canary")
    served.publish("globex/tickets", seed=3)
    resident = [Resident("d", "acme/support", number, 10 * number, 0, pinned=number == 2) for number in (2, 1)]
    served.engine.report(stats(resident=resident))
    first, second = (await call(served, "GET", "/v1/adapters")).json()["data"]
    assert (first["id"], first["version"]) == ("acme/support", 1)
    assert first["resident"] == [
        {"version": 1, "bytes": 10, "running": 0, "pinned": False},
        {"version": 2, "bytes": 20, "running": 0, "pinned": True},
    ]
    assert first["aliases"] == {"canary": 2, "production": 1}
    assert (second["id"], second["resident"], second["aliases"]) == ("globex/tickets", [], {})


@pytest.mark.slow
async def test_loading_ahead_and_unloading(served: Served) -> None:
    version = served.publish("acme/support")
    body = {"adapter": "acme/support"}
    loaded = (await call(served, "POST", "/v1/adapters/load", json=body)).json()
    state = {"id": "acme/support", "version": 1, "digest": version.digest, "resident": True, "bytes": 1000}
    assert loaded == {**state, "pinned": False}
    assert served.engine.pinned == []
    assert (await call(served, "POST", "/v1/adapters/load", json={**body, "pin": True})).json() == {
        **state,
        "pinned": True,
    }
    freed = (await call(served, "POST", "/v1/adapters/unload", json=body)).json()
    assert freed["resident"] is False
    assert (served.engine.loaded, served.engine.unloaded) == ([version.digest] * 2, [version.digest])
    assert served.engine.pinned == [version.digest]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "status"), [("acme/none", 404), ("tiny", 400), (None, 400), ("a/b+c/d", 400), ("a/b:2", 400)]
)
async def test_only_adapters_can_be_loaded(served: Served, adapter: str | None, status: int) -> None:
    for path in ("/v1/adapters/load", "/v1/adapters/unload"):
        response = await call(served, "POST", path, json={"adapter": adapter})
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "adapter"
    assert served.engine.loaded == []


async def test_an_adapter_that_cannot_be_served_says_why(served: Served) -> None:
    served.publish("acme/support")
    served.engine.failure = ArtifactRefused("acme/support@1 has NaN", code="artifact_nonfinite")
    response = await call(served, "POST", "/v1/adapters/load", json={"adapter": "acme/support"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "artifact_nonfinite")


async def test_health_names_its_checks(served: Served) -> None:
    ready = await call(served, "GET", "/health/ready")
    assert ready.json() == {"status": "ready", "engine": "ok", "registry": "ok", "draining": "ok"}
    served.gateway.draining = True
    ready = await call(served, "GET", "/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    assert (await call(served, "GET", "/health/live")).json() == {"status": "live"}


async def test_the_documentation_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = await call(served, "GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)='(?!#|/docs)", page.text)
    assert "<script" not in page.text
    for path in ("/v1/chat/completions", "/v1/models/{name}", "/v1/adapters/load", "/health/ready", "/metrics"):
        assert path in page.text
    assert "≤ 2" in page.text, "temperature's upper bound"
    targets = set(re.findall(r"href='#([^']+)'", page.text))
    assert targets <= set(re.findall(r"id='([^']+)'", page.text))


async def test_the_openapi_document_names_and_explains_every_operation(served: Served) -> None:
    document = (await call(served, "GET", "/docs/openapi.json")).json()
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) == 70
    assert all(operation["summary"] and operation["tags"] for operation in operations)


async def test_options_names_every_method_of_a_path(served: Served) -> None:
    paths = (await call(served, "GET", "/docs/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        response = await call(served, "OPTIONS", path)
        assert response.status_code == 204
        assert set(response.headers["allow"].split(", ")) == {*(method.upper() for method in methods), "OPTIONS"}, path


async def test_the_openapi_document_describes_the_form_of_an_upload_and_dates_as_http_has_them(served: Served) -> None:
    document = (await call(served, "GET", "/docs/openapi.json")).json()
    body = document["paths"]["/v1/files"]["post"]["requestBody"]
    assert body == {
        "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/FileCreate"}}},
        "required": True,
    }
    form = document["components"]["schemas"]["FileCreate"]
    assert form["required"] == ["file", "purpose"]
    assert {"expires_after[anchor]", "expires_after[seconds]"} < set(form["properties"])
    headers = document["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["headers"]
    assert [header["schema"].get("format") for header in headers.values()] == [None] * len(headers)


@pytest.mark.parametrize("name", ["acme/support@1", "acme%2Fsupport@1", "acme%2Fsupport%401"])
async def test_a_models_slash_may_be_quoted(served: Served, name: str) -> None:
    served.publish("acme/support")
    response = await call(served, "GET", f"/v1/models/{name}")
    assert (response.status_code, response.json()["id"]) == (200, "acme/support@1")
