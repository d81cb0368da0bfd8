"""`/v1/uploads` through the `openai` client."""

from __future__ import annotations

import hashlib
import io

import httpx
import pytest
from openai import BadRequestError, NotFoundError

from tests.gateway.api.conftest import Served
from tunery.gateway.api import uploads
from tunery.plugins.testing import write_rows


async def part(served: Served, upload: str, data: bytes) -> str:
    return (await served.client.uploads.parts.create(upload, data=io.BytesIO(data))).id


async def test_a_file_that_comes_in_chunks_is_as_one_that_came_whole(served: Served) -> None:
    rows = write_rows(served.folder / "rows.jsonl", 200)
    md5 = hashlib.md5(rows.read_bytes(), usedforsecurity=False).hexdigest()
    upload = await served.client.uploads.upload_file_chunked(
        file=rows, mime_type="text/jsonl", purpose="fine-tune", part_size=1000, md5=md5
    )
    assert rows.stat().st_size > 5000
    assert (upload.object, upload.status, upload.bytes) == ("upload", "completed", rows.stat().st_size)
    assert upload.expires_at == upload.created_at + 3600
    assert upload.file is not None
    assert (upload.file.filename, upload.file.purpose, upload.file.status) == ("rows.jsonl", "fine-tune", "processed")
    assert await served.client.files.retrieve(upload.file.id) == upload.file
    assert (await served.client.files.content(upload.file.id)).content == rows.read_bytes()
    assert list(served.gateway.registry.home.uploads.iterdir()) == []


async def test_rows_with_errors_are_found_as_in_other_uploads(served: Served) -> None:
    upload = await served.client.uploads.upload_file_chunked(
        file=b"not json\n" * 20, filename="bad.jsonl", bytes=180, mime_type="text/jsonl", purpose="fine-tune"
    )
    assert upload.file is not None
    assert upload.file.status == "error"


async def test_an_upload_by_hand(served: Served) -> None:
    upload = await served.client.uploads.create(
        bytes=6,
        filename="some/../a.txt",
        mime_type="text/plain",
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (upload.status, upload.filename, upload.file) == ("pending", "a.txt", None)
    ids = [await part(served, upload.id, data) for data in (b"def", b"abc")]
    with pytest.raises(BadRequestError, match="3 bytes together") as refused:
        await served.client.uploads.complete(upload.id, part_ids=ids[:1])
    assert refused.value.param == "part_ids"
    done = await served.client.uploads.complete(upload.id, part_ids=ids[::-1])
    assert await served.client.uploads.complete(upload.id, part_ids=ids[::-1]) == done
    md5 = hashlib.md5(b"abcdef", usedforsecurity=False).hexdigest()
    assert await served.client.uploads.complete(upload.id, part_ids=ids[::-1], md5=md5.upper()) == done
    with pytest.raises(BadRequestError, match="do not have this md5") as refused:
        await served.client.uploads.complete(upload.id, part_ids=ids[::-1], md5="0" * 32)
    assert refused.value.param == "md5"
    assert done.file is not None
    assert (done.status, done.file.bytes) == ("completed", 6)
    assert done.file.expires_at == done.file.created_at + 3600
    assert (await served.client.files.content(done.file.id)).content == b"abcdef"


async def test_a_cancelled_upload_takes_no_more(served: Served) -> None:
    upload = await served.client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="user_data")
    id_ = await part(served, upload.id, b"abc")
    assert (await served.client.uploads.cancel(upload.id)).status == "cancelled"
    assert list(served.gateway.registry.home.uploads.iterdir()) == []
    for call in (
        lambda: part(served, upload.id, b"def"),
        lambda: served.client.uploads.complete(upload.id, part_ids=[id_]),
        lambda: served.client.uploads.cancel(upload.id),
    ):
        with pytest.raises(BadRequestError, match="cancelled"):
            await call()
    assert [path for path in served.gateway.registry.home.staging.iterdir() if path.name.startswith("part-")] == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": 8 * 2**30 + 1}, "bytes"),
        ({"bytes": 10**30}, "bytes"),
        ({"purpose": "theft"}, "purpose"),
        ({"filename": None}, "filename"),
        ({"mime_type": "x" * 256}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600, "days": 1}}, "expires_after.days"),
        ({"theft": True}, "theft"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after"),
    ],
)
async def test_what_is_no_upload_is_refused_by_name(served: Served, change: dict[str, object], param: str) -> None:
    body = {"bytes": 6, "filename": "a", "mime_type": "text/plain", "purpose": "batch"} | change
    response = await served.post("/v1/uploads", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_part_has_one_field(served: Served) -> None:
    upload = await served.client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="user_data")
    async with httpx.AsyncClient() as client:
        response = await client.post(
            f"{served.url}/v1/uploads/{upload.id}/parts", files={"data": b"abc"}, data={"purpose": "batch"}
        )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "purpose")


async def test_parts_have_limits(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await served.client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="user_data")
    monkeypatch.setattr(uploads, "MAX_PART", 4)
    for data in (b"", b"abcde"):
        with pytest.raises(BadRequestError) as refused:
            await part(served, upload.id, data)
        assert refused.value.param == "data"
    for name, kind in (("upload_none", NotFoundError), ("u" * 200, BadRequestError)):
        with pytest.raises(kind):
            await part(served, name, b"abc")
        with pytest.raises(kind):
            await served.client.uploads.complete(name, part_ids=["part_none"])
        with pytest.raises(kind):
            await served.client.uploads.cancel(name)
    async with httpx.AsyncClient(verify=False) as client:
        response = await client.post(f"{served.url}/v1/uploads/{upload.id}/parts", files={"file": ("a", b"abc")})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "file")
