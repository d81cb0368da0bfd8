"""Bodies that would cost the gateway more than they cost their sender."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest
from litestar.exceptions import HTTPException

from tests.gateway.api.conftest import Served
from tunery.gateway.api.http.body_shape import LIMITS, check_shape
from tunery.gateway.api.http.errors import Refused
from tunery.plugins.data.read.formats import InvalidRow
from tunery.plugins.data.read.row import parse_object
from tunery.registry.errors import InvalidInput
from tunery.registry.keys.api_key import SCOPES
from tunery.registry.names import file_name

CHAT = "/v1/chat/completions"
BEGIN = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],'
MANY = 3 * LIMITS.members


@pytest.fixture
async def acme(served: Served) -> Any:
    _, token = served.gateway.registry.keys.create(tenant="acme", scopes=SCOPES, actor="test")
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, verify=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        BEGIN + b'"metadata":[' + b"{}," * MANY + b"{}]}",
        BEGIN + b'"metadata":[' + b"[]," * MANY + b"[]]}",
        BEGIN + b'"metadata":' + b"[" * MANY,
        BEGIN + b'"logit_bias":{' + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}}",
        b'{"prompt":[' + b"7," * (LIMITS.values + 1) + b"7]}",
        b'{"guided_choice":[' + b'"a",' * (LIMITS.texts + 1) + b'"a"]}',
        b'{"prompt":"\\\\",' + b'"stop":[' + b"{}," * MANY + b"{}]}",
        b'{"prompt":"\\\\\\"",' + b'"stop":[' + b"{}," * MANY + b"{}]}",
    ],
)
def test_more_values_than_any_request_has_are_refused_unparsed(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="several smaller requests") as caught:
        check_shape(body)
    assert caught.value.code == "too_many_values"


@pytest.mark.parametrize("text", ['{"a": [1, 2]}, ' * 50_000, '\\"{[:,' * MANY, "\\" * 10 + "[{,:" * MANY, '"' * MANY])
def test_texts_may_hold_any_marks(text: str) -> None:
    check_shape(json.dumps({"model": "tiny", "prompt": text}).encode())


def test_large_requests_that_make_sense_are_let_through() -> None:
    ids = {"model": "tiny", "input": [list(range(200))] * 2048}
    check_shape(json.dumps(ids, separators=(",", ":")).encode())
    message = {"role": "user", "content": [{"type": "text", "text": "hi, there"}] * 4}
    check_shape(json.dumps({"model": "tiny", "messages": [message] * 4096}).encode())


def test_rows_have_bounds_too() -> None:
    row = b'{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],"tools":['
    with pytest.raises(InvalidRow, match="split it"):
        parse_object(1, row + b"[]," * LIMITS.members + b"[]]}")
    content = json.dumps("{[:,\\" * 300_000).encode()
    assert parse_object(1, row.replace(b'"x"', content) + b"{}]}")


@pytest.mark.slow
async def test_every_such_request_is_answered_briefly(acme: httpx.AsyncClient) -> None:
    shaped = BEGIN + b'"metadata":[' + b"[]," * MANY + b"[]]}"
    for path in (CHAT, "/v1/responses", "/v1/evals", "/v1/fine_tuning/jobs", "/v1/batches", "/v1/uploads"):
        answer = await acme.post(path, content=shaped)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_values"), path
    for extra in (
        {"guided_choice": ["a" * 10] * 40_000},
        {"guided_json": {"enum": list(range(100_000))}},
        {"guided_regex": "a" * 300_000},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x"] * 100_000}}}},
    ):
        answer = await acme.post("/v1/completions", json={"model": "tiny", "prompt": "x", **extra})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_constraint"), extra.keys()
        assert "larger than 256 KiB" in answer.text


async def test_stop_strings_have_a_length(acme: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    assert (await acme.post(CHAT, json=body | {"stop": ["a" * 1024] * 16})).status_code == 200
    answer = await acme.post(CHAT, json=body | {"stop": ["x", "a" * 1025]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stop")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip", "zstd"])
async def test_nothing_is_unpacked(acme: httpx.AsyncClient, encoding: str) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    for path, kind in ((CHAT, "application/json"), ("/v1/files", "multipart/form-data; boundary=b")):
        headers = {"content-type": kind, "content-encoding": encoding}
        answer = await acme.post(path, content=bomb, headers=headers)
        assert answer.status_code == 415, path
        assert "uncompressed" in answer.text


PART = b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n'
FILE = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n'


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        (b"".join(PART % b"purpose" + b"x\r\n" for _ in range(5000)) + b"--b--\r\n", "twice"),
        (b"".join(PART % (b"x%d" % n) + b"x\r\n" for n in range(5000)) + b"--b--\r\n", "not supported"),
        (b"--b\r\nx-a: " + b"a" * 1_000_000, "header length"),
        (b"--b\r\n" + b"x-a: b\r\n" * 100_000, "header count"),
        (FILE + b"\r\n{}", "Unexpected end"),
        (FILE + b"content-length: 99999999\r\n\r\n{}\r\n--b--\r\n", "size does not match"),
        (PART % b"purpose" + b"x" * 100_000 + b"\r\n--b--\r\n", "too long"),
        (b'--b\r\ncontent-disposition: form-data; name="file"; filename="\xff\xfe"\r\n\r\n{}\r\n--b--\r\n', "decode"),
        (b"", "Unexpected end"),
    ],
)
async def test_forms_without_end_are_refused(acme: httpx.AsyncClient, form: bytes, problem: str) -> None:
    answer = await acme.post("/v1/files", content=form, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400
    assert problem in answer.text


NAMES = {
    "../../etc/passwd": "passwd",
    "..\\..\\boot.ini": "boot.ini",
    "C:\\windows\\rows.jsonl": "rows.jsonl",
    "..": "upload",
    ".": "upload",
    "....": "upload",
    "": "upload",
    "a/": "upload",
    "a\0b": "a_b",
    "a\r\nset-cookie: x": "a__set-cookie: x",
    "evil\u202egnp.exe": "evil_gnp.exe",
    "é" * 300: "é" * 127,
    "\ud800.jsonl": "?.jsonl",
    ".env": ".env",
}


@pytest.mark.parametrize(("given", "kept"), NAMES.items(), ids=map(ascii, NAMES))
def test_a_files_name_is_one_name(given: str, kept: str) -> None:
    assert file_name(given) == kept
    assert len(file_name(given).encode()) <= 255


async def test_a_file_called_like_a_folder_is_checked_like_any_other(acme: httpx.AsyncClient) -> None:
    row = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    del acme.headers["content-type"]
    for name in ("..", "é" * 300):
        answer = await acme.post("/v1/files", files={"file": (name, row)}, data={"purpose": "fine-tune"})
        assert answer.json()["status"] == "processed", answer.text
        made = {"filename": name, "purpose": "fine-tune", "bytes": 9, "mime_type": "text/jsonl"}
        assert (await acme.post("/v1/uploads", json=made)).json()["filename"] == file_name(name)


def test_a_refusal_before_the_body_can_close_the_connection() -> None:
    error: HTTPException = Refused("x", status=400, code="y", close=True)
    assert error.headers == {"connection": "close"}


@pytest.mark.slow
async def test_requests_of_batches_have_the_same_bounds(acme: httpx.AsyncClient) -> None:
    line = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"tiny","prompt":"x","metadata":['
    del acme.headers["content-type"]
    files = {"file": ("batch.jsonl", line + b"{}," * MANY + b"{}]}}\n")}
    file = (await acme.post("/v1/files", files=files, data={"purpose": "batch"})).json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = (await acme.post("/v1/batches", json=asked)).json()
    async with asyncio.timeout(120):
        while batch["status"] not in ("completed", "failed"):
            await asyncio.sleep(0.1)
            batch = (await acme.get(f"/v1/batches/{batch['id']}")).json()
    assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}, batch
    errors = (await acme.get(f"/v1/files/{batch['error_file_id']}/content")).json()
    assert errors["response"]["body"]["error"]["code"] == "too_many_values"
