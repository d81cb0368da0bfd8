"""`/v1/files` through the `openai` client, and forms that no client would send."""

from __future__ import annotations

import httpx
import pytest
from openai import BadRequestError, NotFoundError

from tests.gateway.api.conftest import Served
from tunery.plugins.testing import write_rows
from tunery.registry.records import JobRequest

BROKEN = b'{"messages": [{"role": "user", "content": "a"}]}\nnot json\n'


async def send(served: Served, body: bytes, kind: str = "multipart/form-data; boundary=b") -> httpx.Response:
    async with httpx.AsyncClient(verify=False) as client:
        return await client.post(f"{served.url}/v1/files", content=body, headers={"content-type": kind})


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return (
        b"".join(
            b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
            for head, body in parts
        )
        + end
    )


async def test_a_file_of_rows_is_uploaded_checked_listed_read_and_deleted(served: Served) -> None:
    rows = write_rows(served.folder / "rows.jsonl", 20)
    file = await served.client.files.create(file=rows, purpose="fine-tune")
    assert (file.object, file.filename, file.bytes) == ("file", "rows.jsonl", rows.stat().st_size)
    assert (file.purpose, file.status, file.status_details, file.expires_at) == ("fine-tune", "processed", None, None)
    assert await served.client.files.retrieve(file.id) == file
    assert (await served.client.files.wait_for_processing(file.id)) == file
    assert (await served.client.files.content(file.id)).content == rows.read_bytes()
    other = await served.client.files.create(
        file=("evil/../x.txt", b"hello"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (other.filename, other.status, other.expires_at) == ("x.txt", "processed", other.created_at + 3600)
    assert [each.id async for each in served.client.files.list()] == [other.id, file.id]
    assert [each.id async for each in served.client.files.list(purpose="fine-tune")] == [file.id]
    assert [each.id async for each in served.client.files.list(limit=1, order="asc")] == [file.id, other.id]
    deleted = await served.client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    with pytest.raises(NotFoundError, match=f"No such File object: {file.id}") as missing:
        await served.client.files.retrieve(file.id)
    assert (missing.value.param, missing.value.type) == ("id", "invalid_request_error")


async def test_rows_with_errors_make_a_failed_file_with_every_finding(served: Served) -> None:
    file = await served.client.files.create(file=("bad.jsonl", BROKEN), purpose="fine-tune")
    assert file.status == "error"
    assert file.status_details is not None
    assert "bad.jsonl:1" in file.status_details
    assert "bad.jsonl:2" in file.status_details
    async with httpx.AsyncClient(verify=False) as client:
        found = (await client.get(f"{served.url}/v1/files/{file.id}/findings")).json()
    assert {(finding["line"], finding["rule"]) for finding in found["report"]["findings"]} >= {
        (1, "schema"),
        (2, "schema"),
    }
    with pytest.raises(BadRequestError, match=r"bad\.jsonl:2") as refused:
        await served.client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert (refused.value.param, refused.value.code) == ("training_file", "invalid_training_file")
    assert served.gateway.registry.jobs() == []


async def test_what_is_no_file_of_rows_says_so(served: Served) -> None:
    file = await served.client.files.create(file=("picture.png", b"\x89PNG\x00\x01"), purpose="fine-tune")
    assert file.status == "error"
    assert file.status_details


async def test_a_large_file_is_checked_after_the_answer_and_by_the_next_server_if_need_be(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery.gateway.jobs.file_checks.AT_ONCE", 10)
    file = await served.client.files.create(file=write_rows(served.folder / "rows.jsonl", 20), purpose="fine-tune")
    assert file.status == "uploaded"
    assert (await served.client.files.wait_for_processing(file.id, poll_interval=0.05)).status == "processed"
    files = served.gateway.registry.data_files
    files.checked(file.id, status="uploaded", details=None, findings=None)  # as a server that ended meanwhile leaves it
    await served.gateway.file_checks.catch_up()
    assert (await served.client.files.wait_for_processing(file.id, poll_interval=0.05)).status == "processed"


async def test_a_file_that_a_job_needs_is_not_deleted(served: Served) -> None:
    file = await served.client.files.create(file=write_rows(served.folder / "rows.jsonl", 20), purpose="fine-tune")
    request = JobRequest(adapter="default/bot", trainer="lora", base=served.base.digest, data=(file.id,))
    job = served.gateway.registry.queue.submit(request, tenant="default")
    with pytest.raises(BadRequestError, match=job.id) as refused:
        await served.client.files.delete(file.id)
    assert refused.value.code == "file_in_use"


async def test_control_characters_are_no_part_of_a_name(served: Served) -> None:
    for name, stored in (("a\x00b\x85.txt", "a_b_.txt"), ("a\r\nb", "a__b"), ("\n", "_")):
        upload = await served.client.uploads.create(bytes=1, filename=name, mime_type="text/plain", purpose="batch")
        assert upload.filename == stored
    body = form(('name="file"; filename="a\tb\x7f.txt"', b"x"), ('name="purpose"', b"user_data"))
    assert (await send(served, body)).json()["filename"] == "a_b_.txt"


async def test_a_file_that_cannot_be_read_is_named_as_it_was_uploaded(served: Served) -> None:
    file = await served.client.files.create(
        file=("a.csv", b'prompt,completion\n"unterminated,x\n'), purpose="fine-tune"
    )
    assert file.status_details is not None
    assert "a.csv:2: $: is not CSV" in file.status_details
    assert "/" not in file.status_details
    async with httpx.AsyncClient(verify=False) as client:
        found = (await client.get(f"{served.url}/v1/files/{file.id}/findings")).text
    assert str(served.folder) not in found
    assert "staging" not in found


async def test_a_page_after_no_file_is_refused_by_name(served: Served) -> None:
    with pytest.raises(NotFoundError) as refused:
        await served.client.files.list(after="nope")
    assert refused.value.param == "after"


async def test_another_tenants_file_is_not_there(served: Served) -> None:
    path = served.folder / "theirs"
    path.write_text("secret")
    theirs = served.gateway.registry.data_files.add(path, tenant="globex", purpose="user_data", name="theirs")
    for call in (served.client.files.retrieve, served.client.files.content, served.client.files.delete):
        with pytest.raises(NotFoundError):
            await call(theirs.id)
    assert [file.id async for file in served.client.files.list()] == []


FILE, PURPOSE = ('name="file"; filename="a.jsonl"', b"{}\n"), ('name="purpose"', b"fine-tune")


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (form(FILE), 400, "purpose", "no field 'purpose'"),
        (form(PURPOSE), 400, "file", "no file in the field 'file'"),
        (form(FILE, ('name="purpose"', b"theft")), 400, "purpose", "'theft' is not a purpose"),
        (form(('name="file"; filename="a"', b""), PURPOSE), 400, "file", "the file is empty"),
        (form(FILE, FILE, PURPOSE), 400, "file", "several files"),
        (form(FILE, ('name="purpose"', b"a" * 10_000)), 400, "purpose", "too long"),
        (form(FILE, PURPOSE, ('name="purpos"', b"batch")), 400, "purpos", "did you mean 'purpose'? Or leave it out"),
        (form(FILE, PURPOSE, ('name="foo"', b"1")), 400, "foo", "'purpose'; or leave it out"),
        (form(FILE, PURPOSE, ('name="expires_after"', b"x")), 400, "expires_after", "is not supported"),
        (form(FILE, PURPOSE, ('name="purpose"', b"batch")), 400, "purpose", "'purpose' twice; send it once"),
        (form(FILE, ('name="purpose"', b"\xff")), 400, "purpose", "not UTF-8"),
        (form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"1")), 400, "expires_after[seconds]", "3600"),
        (form(FILE, PURPOSE, ('name="expires_after[anchor]"', b"now")), 400, "expires_after[anchor]", "created_at"),
        (form(FILE, PURPOSE, end=b""), 400, None, "multipart/form-data"),
        (b"", 400, None, "multipart/form-data"),
        (b"\x00" * 1000, 400, None, "multipart/form-data"),
        (form((FILE[0] + "; " + "a" * 10_000, b"{}"), PURPOSE), 400, None, "multipart/form-data"),
    ],
)
async def test_malformed_forms_are_refused_and_leave_nothing(
    body: bytes, status: int, param: str | None, message: str, served: Served
) -> None:
    response = await send(served, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert served.gateway.registry.data_files.page(tenant=None, purpose=None, after=None, limit=9) == ([], False)
    assert [*served.gateway.registry.home.staging.iterdir()] == []


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "text/plain", "multipart/form-data; boundary="]
)
async def test_other_content_types_are_refused(kind: str, served: Served) -> None:
    response = await send(served, form(FILE, PURPOSE), kind)
    assert response.status_code == (400 if kind.startswith("multipart") else 415)


async def test_a_web_page_elsewhere_cannot_upload(served: Served) -> None:
    async with httpx.AsyncClient(verify=False) as client:
        response = await client.post(
            f"{served.url}/v1/files",
            content=form(FILE, PURPOSE),
            headers={"content-type": "multipart/form-data; boundary=b", "origin": "https://evil.example"},
        )
    assert response.status_code == 403


@pytest.mark.slow
async def test_a_file_is_never_held_in_memory(served: Served) -> None:
    """Twice as much as all bodies together may hold."""
    chunk = b"x" * (1 << 20)

    async def body() -> object:
        yield form(PURPOSE, end=b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n').replace(
            b"fine-tune", b"user_data"
        )
        for _ in range(400):
            yield chunk
        yield b"\r\n--b--\r\n"

    async with httpx.AsyncClient(verify=False, timeout=600) as client:
        response = await client.post(
            f"{served.url}/v1/files",
            content=body(),  # type: ignore[arg-type]
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
    assert response.status_code == 200, response.text
    assert response.json()["bytes"] == 400 << 20
