"""Uploads in parts: joined in any order, to the byte, once; and whatever ends, nothing is left on the disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.engine.hypothesis_settings import often
from tunery.registry.errors import Conflict, InvalidInput, NotFound
from tunery.registry.home import Home
from tunery.registry.records import Upload
from tunery.registry.registry import Registry
from tunery.registry.uploads import LIFETIME


class Parts:
    """A registry whose time the test sets, and its uploads."""

    def __init__(self, registry: Registry, folder: Path, now: list[float]) -> None:
        self.registry, self.uploads, self.folder, self.now = registry, registry.uploads, folder, now

    def create(self, size: int, *, expires_after: float | None = None) -> Upload:
        return self.uploads.create(
            tenant="acme",
            purpose="batch",
            name="a.jsonl",
            mime_type="text/jsonl",
            size=size,
            file_expires_after=expires_after,
        )

    def add(self, upload: Upload, data: bytes, *, tenant: str = "acme") -> str:
        path = self.folder / "part"
        path.write_bytes(data)
        return self.uploads.add_part(upload.id, path, tenant=tenant).id

    def complete(self, upload: Upload, *parts: str, md5: str | None = None) -> bytes:
        _, file, _ = self.uploads.complete(upload.id, parts, tenant="acme", status="processed", md5=md5)
        return self.registry.data_files.path(file).read_bytes()

    @property
    def left(self) -> list[str]:
        folder = self.registry.home.uploads
        return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.fixture
def parts(home: Home, tmp_path: Path) -> Iterator[Parts]:
    now = [4e9]
    with Registry.open(home, clock=lambda: now[0]) as registry:
        yield Parts(registry, tmp_path, now)


def test_parts_are_joined_in_the_order_that_is_asked_for(parts: Parts) -> None:
    upload = parts.create(6, expires_after=7200.0)
    ids = [parts.add(upload, data) for data in (b"cc", b"aa", b"bb", b"zz")]
    md5 = hashlib.md5(b"aabbcc", usedforsecurity=False).hexdigest()
    assert parts.complete(upload, ids[1], ids[2], ids[0], md5=md5.upper()) == b"aabbcc"
    ended = parts.uploads.get(upload.id, tenant="acme")
    file = parts.registry.data_files.get(str(ended.file), tenant="acme")
    assert (ended.status, file.name, file.purpose, file.size) == ("completed", "a.jsonl", "batch", 6)
    assert file.expires_at == parts.now[0] + 7200.0
    assert parts.left == []


def test_a_completion_that_is_sent_again_has_the_same_answer(parts: Parts) -> None:
    upload = parts.create(4)
    ids = [parts.add(upload, data) for data in (b"aa", b"bb")]
    first = parts.uploads.complete(upload.id, ids, tenant="acme", status="processed")
    again = parts.uploads.complete(upload.id, ids, tenant="acme", status="processed")
    assert (first[:2], first[2], again[2]) == (again[:2], True, False)
    with pytest.raises(Conflict, match="completed"):
        parts.uploads.complete(upload.id, ids[::-1], tenant="acme", status="processed")
    with pytest.raises(Conflict, match="completed"):
        parts.add(upload, b"c")


def test_what_does_not_fit_is_refused_and_the_upload_goes_on(parts: Parts) -> None:
    upload, other = parts.create(4), parts.create(2)
    one, two, foreign = parts.add(upload, b"aa"), parts.add(upload, b"bb"), parts.add(other, b"xx")
    for ids, match in (
        ([one], "2 bytes together"),
        ([one, two, foreign], "no part of"),
        ([one, one], "named twice"),
        ([one, "part_none"], "no part of"),
    ):
        with pytest.raises(InvalidInput, match=match) as refused:
            parts.complete(upload, *ids)
        assert refused.value.param == "part_ids"
    with pytest.raises(InvalidInput, match="md5"):
        parts.complete(upload, one, two, md5="0" * 32)
    with pytest.raises(InvalidInput, match="only 4"):
        parts.add(upload, b"aaaaa")
    parts.add(upload, b"cccc")
    with pytest.raises(InvalidInput, match="twice"):
        parts.add(upload, b"d")
    with pytest.raises(NotFound):
        parts.add(upload, b"a", tenant="globex")
    assert parts.complete(upload, one, two) == b"aabb"
    assert len(parts.registry.data_files.page(tenant=None, purpose=None, after=None, limit=9)[0]) == 1


def test_cancelled_and_expired_uploads_leave_nothing_behind(parts: Parts) -> None:
    cancelled, late, going = parts.create(2), parts.create(2), parts.create(2)
    ids = [parts.add(upload, b"aa") for upload in (cancelled, late)]
    assert parts.uploads.cancel(cancelled.id, tenant="acme").status == "cancelled"
    assert parts.left == [late.id]
    parts.now[0] += LIFETIME - 1
    parts.add(going, b"aa")
    assert parts.uploads.expire() == 0
    parts.now[0] += 1
    assert parts.uploads.get(late.id, tenant="acme").status == "expired"
    for act in (
        lambda: parts.complete(late, ids[1]),
        lambda: parts.uploads.cancel(late.id, tenant="acme"),
        lambda: parts.add(late, b"bb"),
        lambda: parts.complete(cancelled, ids[0]),
    ):
        with pytest.raises(Conflict) as refused:
            act()
        assert refused.value.code == "upload_ended"
    assert parts.uploads.expire() == 3 - 1
    assert parts.left == []


def test_what_a_crash_left_behind_is_deleted_and_what_goes_on_is_not(parts: Parts) -> None:
    ended, going = parts.create(2), parts.create(2)
    part = parts.add(going, b"aa")
    shutil.copytree(parts.registry.home.uploads / going.id, parts.registry.home.uploads / ended.id)
    parts.uploads.cancel(ended.id, tenant="acme")
    (parts.registry.home.uploads / ended.id).mkdir()
    (parts.registry.home.uploads / going.id / "part_orphan").write_bytes(b"x")
    parts.registry.collect(older_than=-1e12)
    assert parts.left == [going.id]
    (parts.registry.home.uploads / ended.id).mkdir()
    parts.uploads.expire()
    assert parts.left == [going.id]
    with Registry.open(parts.registry.home, clock=lambda: parts.now[0]) as restarted:
        _, file, _ = restarted.uploads.complete(going.id, [part], tenant="acme", status="processed")
        assert restarted.data_files.path(file).read_bytes() == b"aa"
    assert parts.left == []


def test_an_upload_that_is_cancelled_while_it_is_joined_makes_no_file(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = parts.create(2)
    part = parts.add(upload, b"aa")
    put = parts.registry.blobs.put

    def cancel_first(*sources: Path, name: str, lease: Path) -> object:
        parts.uploads.cancel(upload.id, tenant="acme")
        return put(*sources, name=name, lease=lease)

    monkeypatch.setattr(parts.registry.blobs, "put", cancel_first)
    with pytest.raises(Conflict, match="cancelled"):
        parts.complete(upload, part)
    assert parts.registry.data_files.page(tenant=None, purpose=None, after=None, limit=9) == ([], False)


def test_the_slower_of_two_equal_completions_has_the_answer_of_the_faster(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the parts are still there when it joins them, or not."""
    put = parts.registry.blobs.put
    for before in (True, False):
        upload = parts.create(2)
        part = parts.add(upload, b"aa")
        faster: list[object] = []

        def other_call(
            *sources: Path,
            name: str,
            lease: Path,
            upload: Upload = upload,
            part: str = part,
            before: bool = before,
            faster: list[object] = faster,
        ) -> object:
            monkeypatch.setattr(parts.registry.blobs, "put", put)
            stored = None if before else put(*sources, name=name, lease=lease)
            faster += parts.uploads.complete(upload.id, [part], tenant="acme", status="processed")[:2]
            return put(*sources, name=name, lease=lease) if before else stored

        monkeypatch.setattr(parts.registry.blobs, "put", other_call)
        slower = parts.uploads.complete(upload.id, [part], tenant="acme", status="processed")
        assert (list(slower[:2]), slower[2]) == (faster, False)
    assert len(parts.registry.data_files.page(tenant=None, purpose=None, after=None, limit=9)[0]) == 2


@often(20)
@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=6), st.randoms())
def test_any_parts_in_any_order_are_joined_to_the_byte(new_home: Path, chunks: list[bytes], order: object) -> None:
    root = new_home.parent / "joined"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(new_home, root)
    with Registry.open(Home(root)) as registry:
        made = Parts(registry, root, [0.0])
        upload = made.create(sum(map(len, chunks)))
        ids = {at: made.add(upload, chunk) for at, chunk in enumerate(chunks)}
        places = list(ids)
        order.shuffle(places)  # type: ignore[attr-defined]
        assert made.complete(upload, *(ids[at] for at in places)) == b"".join(chunks[at] for at in places)
