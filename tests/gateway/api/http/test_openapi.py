"""The OpenAPI document against the server: every documented status occurs in its documented shape, and no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.gateway.api.admin.operations import ADMIN_BODIES, administer
from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import stats
from tunery.gateway.app import MAX_BODY
from tunery.registry.configuration.settings import ServeSettings
from tunery.registry.errors import ArtifactRefused, StorageBusy
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success

MESSAGES = [{"role": "user", "content": "Hi"}]
GRADER = {"type": "string_check", "name": "a", "input": "{{item.a}}", "reference": "b", "operation": "eq"}
DATA_SOURCE = {
    "type": "completions",
    "model": "tiny",
    "source": {"type": "file_content", "content": [{"item": {"a": "b"}}]},
    "input_messages": {"type": "template", "template": MESSAGES},
}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES},
    "/v1/completions": {"model": "tiny", "prompt": "Hi"},
    "/v1/responses": {"model": "tiny", "input": "Hi"},
    "/v1/embeddings": {"model": "tiny", "input": "Hi"},
    "/v1/adapters/load": {"adapter": "acme/docs"},
    "/v1/adapters/unload": {"adapter": "acme/docs"},
    "/v1/adapters/share": {"adapter": "acme/docs", "tenants": ["globex"]},
    "/v1/adapters/unshare": {"adapter": "acme/docs"},
    **ADMIN_BODIES,
    "/v1/fine_tuning/jobs": {"model": "tiny", "training_file": "file-none"},
    "/v1/uploads": {"filename": "a.jsonl", "purpose": "batch", "bytes": 3, "mime_type": "text/jsonl"},
    "/v1/batches": {"input_file_id": "file-none", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "/v1/evals": {"data_source_config": {"type": "custom", "item_schema": {}}, "testing_criteria": [GRADER]},
    "/v1/evals/{eval_id}": {},
    "/v1/evals/{eval_id}/runs": {"data_source": DATA_SOURCE},
}
ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
JOBS, ACTIONS = "/v1/fine_tuning/jobs", ("pause", "resume", "cancel")
EXAMPLES = 25
MOST = 404


class Document:
    """The served document, and what it says of one operation's answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.paths: dict[str, dict[str, Any]] = document["paths"]
        self._components = document["components"]
        self.seen: set[tuple[str, str, int]] = set()

    @property
    def documented(self) -> set[tuple[str, str, int]]:
        return {
            (path, method, int(status))
            for path, methods in self.paths.items()
            for method, operation in methods.items()
            for status in operation["responses"]
        }

    def schema(self, path: str) -> dict[str, Any]:
        """The schema of a request's body, with what it refers to."""
        content = self.paths[path]["post"]["requestBody"]["content"]
        return {**content["application/json"]["schema"], "components": self._components}

    def check(self, path: str, method: str, response: httpx.Response, sent: object = None) -> None:
        """Fail unless the document says that this may be the answer."""
        responses = self.paths[path][method]["responses"]
        assert str(response.status_code) in responses, (path, response.status_code, response.text, sent)
        kind = response.headers["content-type"]
        content = {
            name.partition(";")[0]: spec for name, spec in responses[str(response.status_code)]["content"].items()
        }
        assert kind.partition(";")[0] in content, (path, kind)
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": self._components}
            problems = [error.message for error in Draft202012Validator(schema).iter_errors(response.json())]
            assert problems == [], (path, response.text, sent)
        self.seen.add((path, method, response.status_code))


@pytest.fixture(name="settings")
def serve_settings() -> ServeSettings:
    return ServeSettings(base="tiny", auth=False, max_batch=4, max_waiting=400, max_waiting_per_tenant=MOST)


@pytest.fixture
async def document(served: Served) -> Document:
    async with httpx.AsyncClient(verify=False) as client:
        document = (await client.get(f"{served.url}/docs/openapi.json")).json()
    Draft202012Validator.check_schema({"$defs": document["components"]["schemas"]})
    return Document(document)


NUMBERS: dict[str, Callable[[Any, Any], st.SearchStrategy[Any]]] = {
    "integer": lambda low, high: st.integers(None if low is None else int(low), None if high is None else int(high)),
    "number": lambda low, high: st.floats(low, high, allow_nan=False, allow_infinity=False),
}
SIMPLE: dict[str, st.SearchStrategy[Any]] = {"boolean": st.booleans(), "null": st.none()}
ANYTHING = st.recursive(
    st.one_of(*SIMPLE.values(), st.text(), st.integers(-9, 9)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def made_of(schema: dict[str, Any], components: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Whatever a schema allows, of the words that the document uses."""
    if reference := schema.get("$ref"):
        return made_of(components[reference.rsplit("/", 1)[1]], components)
    if choices := schema.get("anyOf"):
        return st.one_of([made_of(choice, components) for choice in choices])
    if values := schema.get("enum"):
        return st.sampled_from(values)
    kind = schema.get("type")
    if kind == "array":
        return st.lists(made_of(schema.get("items", {}), components), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "object":
        fields = {name: made_of(field, components) for name, field in schema.get("properties", {}).items()}
        if not fields:
            more = schema.get("additionalProperties")
            return st.dictionaries(st.text(), made_of(more if isinstance(more, dict) else {}, components), max_size=3)
        needed = schema.get("required", ())
        return st.fixed_dictionaries(
            {name: fields[name] for name in needed},
            optional={name: field for name, field in fields.items() if name not in needed},
        )
    if kind in NUMBERS:
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        low, high = schema.get("minimum", above), schema.get("maximum", below)
        return NUMBERS[kind](low, high).filter(lambda number: number not in (above, below))
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength"))
    return SIMPLE.get(kind or "", ANYTHING)


def bodies(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What hypothesis makes of a schema, the same every time."""
    made: list[dict[str, Any]] = []

    @settings(
        max_examples=EXAMPLES, database=None, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(made_of(schema, schema["components"]["schemas"]))
    def collect(body: dict[str, Any]) -> None:
        made.append(body)

    collect()
    return made


@pytest.mark.slow
async def test_every_documented_status_is_met_and_no_other(served: Served, document: Document) -> None:
    served.publish("acme/docs")
    served.engine.report(stats())
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:

        async def everywhere(**options: Any) -> None:
            for path, methods in document.paths.items():
                for method in methods:
                    body = {"json": GOOD[path]} if path in GOOD and method == "post" else {}
                    response = await client.request(method, path.replace("{name}", "tiny"), **body | options)
                    document.check(path, method, response)

        async def posted(**options: Any) -> None:
            for path, body in GOOD.items():
                document.check(path, "post", await client.post(path, **{"json": body} | options))

        await everywhere()
        await everywhere(headers={"host": "evil.example"})
        await posted(content=b"{}", headers={"content-type": "text/plain"})
        await posted(content=b" " * (MAX_BODY + 1), headers={"content-type": "application/json"})
        await posted(json={"model": 1, "adapter": 1})
        for path, body in GOOD.items():
            unknown = body | dict.fromkeys({"model", "adapter"} & set(body), "no/body")
            document.check(path, "post", await client.post(path, json=unknown))
        for path in list(GOOD)[:3]:
            document.check(path, "post", await client.post(path, json={**GOOD[path], "stream": True}))
        for name in ("no/body", "acme/docs", "acme/docs:2"):
            document.check("/v1/models/{name}", "get", await client.get(f"/v1/models/{name}"))
        await _responses(client, document)
        await _fine_tune(client, served, document)
        await _upload_in_parts(client, served, document)
        await _batch(client, document)
        await _evaluate(client, served, document)
        await _limited(client, served, document)
        await _usage(client, document)
        await administer(Caller(client, document), served)
        served.engine.failure = ArtifactRefused("acme/docs@1 has NaN", code="artifact_nonfinite")
        await posted()
        served.engine.failure = None
        with served.gateway.admission.hold(MOST, tenant="globex"):
            await posted()
        served.engine.die()
        await everywhere()
        for error in (StorageBusy("the registry stayed locked"), RuntimeError("a bug")):
            _break(served, error)
            await everywhere()
            await _usage(client, document)
            caller = Caller(client, document)
            await caller.upload()
            await caller.add_part("upload_a")
            await caller.complete("upload_a", "part_a")
            await administer(caller, served)
    assert document.seen == document.documented


class Caller:
    """Sends requests of which the document must know the answers."""

    def __init__(self, client: httpx.AsyncClient, document: Document) -> None:
        self.client, self.document = client, document

    async def call(self, method: str, path: str, *, query: str = "", body: object = None, **names: str) -> None:
        place = path.format(**names) if names else path
        sent: dict[str, Any] = {} if body is None else {"json": body}
        self.document.check(path, method, await self.client.request(method, place + query, **sent))

    async def upload(self, purpose: str = "fine-tune") -> str:
        files, data = {"file": ("a.jsonl", ROWS)}, {"purpose": purpose}
        response = await self.client.post("/v1/files", files=files, data=data)
        self.document.check("/v1/files", "post", response)
        return str(response.json().get("id"))

    async def add_part(self, upload: str, field: str = "data") -> str:
        response = await self.client.post(f"/v1/uploads/{upload}/parts", files={field: ("a", b"abc")})
        self.document.check("/v1/uploads/{upload_id}/parts", "post", response)
        return str(response.json().get("id"))

    async def complete(self, upload: str, *parts: str, **options: Any) -> None:
        body = {"json": {"part_ids": parts}} | options
        response = await self.client.post(f"/v1/uploads/{upload}/complete", **body)
        self.document.check("/v1/uploads/{upload_id}/complete", "post", response)

    async def submit(self, file: str) -> str:
        response = await self.client.post(JOBS, json={"model": "tiny", "training_file": file})
        self.document.check(JOBS, "post", response)
        return str(response.json()["id"])


async def _usage(client: httpx.AsyncClient, document: Document) -> None:
    for kind in ("completions", "embeddings"):
        await Caller(client, document).call("get", f"/v1/organization/usage/{kind}", query="?start_time=1")


async def _limited(client: httpx.AsyncClient, served: Served, document: Document) -> None:
    """Store and train more than the limits allow."""
    caller, limits = Caller(client, document), served.gateway.registry.limits
    file = await caller.upload()
    paused = await caller.submit(file)
    await caller.call("post", f"{JOBS}/{{job_id}}/pause", job_id=paused)
    await caller.submit(file)
    upload = (await client.post("/v1/uploads", json=GOOD["/v1/uploads"])).json()["id"]
    part = await caller.add_part(upload)
    for limit in (1, 0):
        limits.set("default", {"storage_bytes": limit, "training_jobs": limit}, actor="test")
        while served.gateway.limiter.book.of_tenant("default").storage_bytes != limit:
            await asyncio.sleep(0.02)
        if limit:
            await caller.upload()
            await caller.complete(upload, part)
            again = await client.post(JOBS, json={"model": "tiny", "training_file": file})
            document.check(JOBS, "post", again)
            await caller.call("post", f"{JOBS}/{{job_id}}/resume", job_id=paused)


async def _responses(client: httpx.AsyncClient, document: Document) -> None:
    """Store a response, read it and delete it, and ask for what is not there."""
    caller, path = Caller(client, document), "/v1/responses/{response_id}"
    stored = (await client.post("/v1/responses", json=GOOD["/v1/responses"] | {"store": True})).json()["id"]
    for name in (stored, "none", "x" * 200):
        await caller.call("get", f"{path}/input_items", response_id=name)
        await caller.call("get", path, response_id=name)
        await caller.call("delete", path, response_id=name)


async def _fine_tune(client: httpx.AsyncClient, served: Served, document: Document) -> None:
    """Upload, train and delete, and what is refused on the way."""
    caller = Caller(client, document)
    await caller.upload("theft")
    document.check("/v1/files", "post", await _announce(served, 1 << 30))
    file = await caller.upload()
    job = await caller.submit(file)
    for query in ("", "?limit=0", "?after=none"):
        await caller.call("get", "/v1/files", query=query)
        await caller.call("get", JOBS, query=query)
    for name in (file, "none", "x" * 200):
        for path in ("/v1/files/{file_id}", "/v1/files/{file_id}/content", "/v1/files/{file_id}/findings"):
            await caller.call("get", path, file_id=name)
    for name in (job, "none", "x" * 200):
        for method, path in (
            ("get", ""),
            ("get", "/events"),
            ("get", "/checkpoints"),
            *(("post", f"/{action}") for action in ACTIONS),
        ):
            await caller.call(method, f"{JOBS}/{{job_id}}{path}", job_id=name)
            await caller.call(method, f"{JOBS}/{{job_id}}{path}", job_id=name)
    await _publish(served, caller, await caller.submit(file))
    await caller.submit(file)
    await caller.call("delete", "/v1/files/{file_id}", file_id=file)
    await caller.call("delete", "/v1/files/{file_id}", file_id=await caller.upload())
    await caller.call("delete", "/v1/files/{file_id}", file_id="x" * 200)


async def _evaluate(client: httpx.AsyncClient, served: Served, document: Document) -> None:
    """Create, run, cancel and delete, and what is not there."""
    caller, evals, run_path = Caller(client, document), "/v1/evals/{eval_id}", "/v1/evals/{eval_id}/runs/{run_id}"

    async def posted(path: str, body: dict[str, Any], **names: str) -> str:
        response = await client.post(path.format(**names), json=body)
        document.check(path, "post", response)
        return str(response.json().get("id"))

    made = await posted("/v1/evals", GOOD["/v1/evals"])
    await posted(evals, {"name": "b"}, eval_id=made)
    runs = [await posted(f"{evals}/runs", GOOD[f"{evals}/runs"], eval_id=made) for _ in range(2)]
    await posted(f"{evals}/runs", {"data_source": {}}, eval_id=made)
    while (await client.get(run_path.format(eval_id=made, run_id=runs[0]))).json()["status"] != "completed":
        await asyncio.sleep(0.02)
    item = (await client.get(f"{run_path}/output_items".format(eval_id=made, run_id=runs[0]))).json()["first_id"]
    for query in ("", "?limit=0", "?after=none"):
        await caller.call("get", "/v1/evals", query=query)
        await caller.call("get", f"{evals}/runs", query=query, eval_id=made)
        await caller.call("get", f"{run_path}/output_items", query=query, eval_id=made, run_id=runs[0])
    for name in (made, "none", "x" * 200):
        await caller.call("get", evals, eval_id=name)
    for name in (runs[0], "none", "x" * 200):
        await caller.call("get", run_path, eval_id=made, run_id=name)
        await caller.call("post", f"{run_path}/cancel", eval_id=made, run_id=name)
        await caller.call("post", run_path, eval_id=made, run_id=name)
    for name in (item, "none", "x" * 300):
        place = f"{run_path}/output_items/{{output_item_id}}"
        await caller.call("get", place, eval_id=made, run_id=runs[0], output_item_id=name)
    served.engine.delay = 60
    for path in (f"{run_path}/cancel", run_path):
        waiting = await posted(f"{evals}/runs", GOOD[f"{evals}/runs"], eval_id=made)
        await caller.call("post", path, eval_id=made, run_id=waiting)
    served.engine.delay = 0
    for name in (runs[1], "none", "x" * 200):
        await caller.call("delete", run_path, eval_id=made, run_id=name)
    for name in (made, "none", "x" * 200):
        await caller.call("delete", evals, eval_id=name)


async def _publish(served: Served, caller: Caller, job: str) -> None:
    """Publish a job's version, and delete it by its name when no alias points to it any more."""
    claim = served.gateway.registry.queue.claim("test")
    assert claim is not None
    assert claim.id == job
    success = Success(job=job, claim=Claim(job, claim.fence), model_name="ft:a")
    served.publish("acme/named", alias="production", job=success)
    for name in ("ft:a", "none"):
        await caller.call("delete", "/v1/models/{name}", name=name)
    served.gateway.registry.drop_alias("acme/named", "production", actor="test")
    await caller.call("delete", "/v1/models/{name}", name="ft:a")


async def _upload_in_parts(client: httpx.AsyncClient, served: Served, document: Document) -> None:
    """Upload in parts, and what is refused on the way."""
    caller = Caller(client, document)
    uploads = [(await client.post("/v1/uploads", json=GOOD["/v1/uploads"])).json()["id"] for _ in range(2)]
    path = "/v1/uploads/{upload_id}/parts"
    document.check(path, "post", await _announce(served, 1 << 30, path.format(upload_id=uploads[0])))
    await caller.complete("x", content=b"{}", headers={"content-type": "text/plain"})
    await caller.complete("x", content=b" " * (MAX_BODY + 1), headers={"content-type": "application/json"})
    part = await caller.add_part(uploads[0])
    await caller.add_part(uploads[0], "file")
    for upload in (uploads[0], "none", "x" * 200):
        await caller.add_part(upload)
        await caller.complete(upload, part)
    for upload in (uploads[1], uploads[1], "none", "x" * 200):
        await caller.call("post", "/v1/uploads/{upload_id}/cancel", upload_id=upload)


async def _batch(client: httpx.AsyncClient, document: Document) -> None:
    """Submit, list and cancel batches."""
    caller = Caller(client, document)
    body = GOOD["/v1/batches"] | {"input_file_id": await caller.upload("batch")}
    response = await client.post("/v1/batches", json=body)
    document.check("/v1/batches", "post", response)
    for query in ("", "?limit=0", "?after=none"):
        await caller.call("get", "/v1/batches", query=query)
    for name in (response.json()["id"], "none", "x" * 200):
        await caller.call("get", "/v1/batches/{batch_id}", batch_id=name)
        await caller.call("post", "/v1/batches/{batch_id}/cancel", batch_id=name)
    cancelled = (await client.post("/v1/batches", json=body)).json()["id"]
    await caller.call("post", "/v1/batches/{batch_id}/cancel", batch_id=cancelled)


async def _announce(served: Served, size: int, path: str = "/v1/files") -> httpx.Response:
    """The answer to an upload that says it is this large, and ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {size}\r\nconnection: close\r\n"
    writer.write(head.encode() + b"content-type: multipart/form-data; boundary=b\r\n\r\n--b")
    writer.write_eof()
    answer, body = (await reader.read()).split(b"\r\n\r\n", 1)
    writer.close()
    status, *lines = answer.decode().split("\r\n")
    headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def _break(served: Served, error: Exception) -> None:
    """Make every operation that can fail by a bug, or because the registry is locked, do so."""

    def fail(*_: object, **__: object) -> None:
        raise error

    resolver: Any = served.gateway.resolver
    files: Any = served.gateway.registry.data_files
    responses: Any = served.gateway.registry.responses
    registry: Any = served.gateway.registry
    metrics: Any = served.gateway.metrics
    for where, name in (
        (resolver, "resolve"),
        (resolver, "resolve_one"),
        (resolver, "served"),
        (metrics, "exposition"),
        *((files, name) for name in ("add", "get", "page")),
        *((responses, name) for name in ("get", "delete")),
        *((registry.queue, name) for name in ("names", "page")),
        *((registry.uploads, name) for name in ("create", "get", "add_part", "cancel")),
        *((registry.batches, name) for name in ("get", "page")),
        *((registry.evals, name) for name in ("create", "get", "page")),
        (registry.usage, "sums"),
        (registry, "job"),
        *((registry.keys, name) for name in ("create", "list", "rotate", "revoke", "tenants")),
        *((registry.sharing, name) for name in ("all", "share", "unshare")),
        *((registry, name) for name in ("versions", "move_alias", "drop_alias", "rollback", "remove")),
        (registry.audit, "page"),
    ):
        setattr(where, name, fail)


@pytest.mark.slow
@pytest.mark.parametrize("path", GOOD)
async def test_whatever_the_document_allows_is_answered_as_it_says(
    served: Served, document: Document, path: str
) -> None:
    """A body that fits its schema is never refused for its shape, be it all made up or a good one
    with made-up options."""
    served.publish("acme/docs")
    schema = document.schema(path)
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        for body in bodies(schema):
            for sent in (body, {**body, "adapter": None, **GOOD[path]}):
                response = await client.post(path, json=sent)
                document.check(path, "post", response, sent)
                assert "invalid_value" not in response.text, (sent, response.text)


@pytest.mark.slow
@pytest.mark.parametrize("path", GOOD)
async def test_whatever_the_document_forbids_is_refused(served: Served, document: Document, path: str) -> None:
    """One field at a time: missing, of every wrong type, and beyond each bound."""
    served.publish("acme/docs")
    schema = document.schema(path)
    described = schema["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    required = described.get("required", [])
    assert set(required) == set(GOOD[path])
    valid: Callable[[Any], bool] = Draft202012Validator(schema).is_valid
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        wrong = [{key: value for key, value in GOOD[path].items() if key != name} for name in required]
        for name, field in described["properties"].items():
            values: list[Any] = [True, 0.5, "", [], {}, None, [None], [{}], {"x": "y"}, *_beyond(field)]
            wrong += [body for value in values if not valid(body := {**GOOD[path], name: value})]
        assert len(wrong) > len(described["properties"])
        for body in wrong:
            response = await client.post(path, json=body)
            document.check(path, "post", response, body)
            assert response.status_code == 400, (json.dumps(body), response.text)


def _beyond(field: dict[str, Any]) -> list[float]:
    """Just past a number's bounds; at one that is exclusive."""
    choices = [field, *field.get("anyOf", ())]
    steps = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0, "exclusiveMaximum": 0}
    return [choice[key] + step for choice in choices for key, step in steps.items() if key in choice]
