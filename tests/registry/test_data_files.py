"""Uploaded files: kept while anything needs them, found by id and page, and theirs alone who uploaded them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery.registry.errors import Conflict, NotFound
from tunery.registry.home import Home
from tunery.registry.records import DataFile, JobRequest
from tunery.registry.registry import Registry


class Files:
    """A registry whose time the test sets, and its uploaded files."""

    def __init__(self, registry: Registry, folder: Path, now: list[float]) -> None:
        self.registry, self.files, self.folder, self.now = registry, registry.data_files, folder, now

    def add(self, text: str = "rows", *, tenant: str = "acme", expires_after: float | None = None) -> DataFile:
        self.now[0] += 1
        path = self.folder / "upload"
        path.write_text(text)
        return self.files.add(path, tenant=tenant, purpose="fine-tune", name="a.jsonl", expires_after=expires_after)


@pytest.fixture
def files(home: Home, tmp_path: Path) -> Iterator[Files]:
    now = [4e9]
    with Registry.open(home, clock=lambda: now[0]) as registry:
        yield Files(registry, tmp_path, now)


def test_a_file_is_stored_and_found_by_its_tenant_alone(files: Files) -> None:
    file = files.add("some rows")
    assert files.files.get(file.id, tenant="acme") == file
    assert files.files.path(file).read_text() == "some rows"
    assert (file.size, file.status, file.created_at) == (9, "uploaded", files.now[0])
    for tenant, name in (("globex", file.id), ("acme", "file-none")):
        with pytest.raises(NotFound, match=f"No such File object: {name}"):
            files.files.get(name, tenant=tenant)


def test_findings_are_kept_with_the_file(files: Files) -> None:
    file = files.add()
    files.files.checked(file.id, status="error", details="1 error", findings={"findings": []})
    kept = files.files.get(file.id)
    assert (kept.status, kept.details) == ("error", "1 error")
    assert files.files.findings(file.id) == {"findings": []}
    files.files.delete(file.id)
    with pytest.raises(NotFound):
        files.files.findings(file.id)
    with pytest.raises(NotFound):
        files.files.checked(file.id, status="processed", details=None, findings=None)


@pytest.mark.parametrize("ascending", [False, True])
def test_pages_have_every_file_once(ascending: bool, files: Files) -> None:
    ids = [files.add(str(number)).id for number in range(7)]
    files.add(tenant="globex")
    seen, after, more = list[str](), None, True
    while more:
        page, more = files.files.page(tenant="acme", purpose="fine-tune", after=after, limit=3, ascending=ascending)
        seen += [file.id for file in page]
        after = seen[-1]
    assert seen == (ids if ascending else ids[::-1])
    assert files.files.page(tenant="acme", purpose="batch", after=None, limit=3) == ([], False)


def test_a_collection_keeps_uploads_and_takes_deleted_ones(files: Files) -> None:
    kept, deleted = files.add("kept"), files.add("deleted")
    files.files.delete(deleted.id)
    assert files.registry.collect(older_than=0).blobs == 1
    assert files.files.path(kept).exists()
    assert not files.files.path(deleted).exists()


def test_a_file_that_a_job_needs_cannot_be_deleted_until_the_job_has_ended(files: Files) -> None:
    file = files.add()
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file.id,))
    job = files.registry.queue.submit(request, tenant="acme")
    with pytest.raises(Conflict, match=f"{file.id} is needed by {job.id}") as refused:
        files.files.delete(file.id)
    assert refused.value.code == "file_in_use"
    files.registry.queue.request(job.id, "cancel")
    files.files.delete(file.id)


def test_files_expire_when_no_job_needs_them(files: Files) -> None:
    idle, needed, lasting = files.add(expires_after=3600), files.add(expires_after=3600), files.add()
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(needed.id,))
    job = files.registry.queue.submit(request, tenant="acme")
    assert files.files.expire() == 0
    files.now[0] += 3601
    assert files.files.expire() == 1
    files.registry.queue.request(job.id, "cancel")
    assert files.files.expire() == 1
    assert [file.id for file in files.files.page(tenant=None, purpose=None, after=None, limit=9)[0]] == [lasting.id]
    assert idle.expires_at == idle.created_at + 3600
