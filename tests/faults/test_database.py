"""The registry's database is locked, gone or read-only: inference goes on, changes fail clearly and work again later."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import event

from tests.faults.conftest import Site
from tunery.registry.errors import StorageFailed
from tunery.registry.home import Home
from tunery.registry.registry import Registry

HOLDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Another process holds the lock of the database."""
    command = [sys.executable, "-c", HOLDER, str(home.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            holder.kill()


async def changes(site: Site, file: str, job: str) -> list[httpx.Response]:
    """One request of every kind that changes the registry, all at once."""
    body = {"model": "tiny", "training_file": file}
    asked = asyncio.gather(
        site.upload(),
        site.http.delete(f"/v1/files/{file}"),
        site.http.post("/v1/fine_tuning/jobs", json=body),
        site.http.post(f"/v1/fine_tuning/jobs/{job}/cancel"),
    )
    return list(await asked)


async def prepared(site: Site) -> tuple[str, str]:
    """A file and a job."""
    file = (await site.upload()).json()["id"]
    made = await site.http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file})
    return file, made.json()["id"]


async def test_a_locked_database_delays_nobody_who_only_asks_and_refuses_changes_until_it_is_free(site: Site) -> None:
    file, job = await prepared(site)
    with locked(site.served.gateway.registry.home):
        changing = asyncio.create_task(changes(site, file, job))
        await asyncio.sleep(0)
        # More of them than one thread could wait for, and each is answered while the changes still wait.
        answered = 0
        while not changing.done():
            assert await site.infer(("acme/support", "acme/sales")[answered % 2]) == 200
            answered += 1
        assert answered > 1
        for response in await changing:
            assert response.status_code == 503, response.text
            assert response.json()["error"]["code"] == "registry_busy"
            assert "stayed locked" in response.json()["error"]["message"]
            assert int(response.headers["retry-after"]) >= 1
        assert await site.metric("tunery_registry_writable") == 0
        assert await site.metric("tunery_registry_up") == 1
        assert (await site.http.get("/health/ready")).status_code == 200
    assert await site.metric("tunery_registry_failures_total", code="registry_busy") >= 4
    assert await site.metric("tunery_http_errors_total", status="503", code="registry_busy") == 4
    assert (await site.http.post(f"/v1/fine_tuning/jobs/{job}/cancel")).status_code == 200
    assert (await site.http.delete(f"/v1/files/{file}")).status_code == 200
    assert (await site.upload()).status_code == 200
    assert await site.metric("tunery_registry_writable") == 1


@pytest.mark.soak
async def test_a_database_that_is_locked_for_half_a_minute_loses_no_request(site: Site) -> None:
    started, longest = time.monotonic(), 0.0
    with locked(site.served.gateway.registry.home):
        writing = [asyncio.create_task(site.upload()) for _ in range(40)]
        while time.monotonic() - started < 30:
            before = time.monotonic()
            assert await site.infer() == 200
            longest = max(longest, time.monotonic() - before)
        assert {response.status_code for response in await asyncio.gather(*writing)} == {503}
    print(f"the slowest answer took {longest:.3f} s")
    assert (await site.upload()).status_code == 200


async def test_a_database_that_is_removed_is_not_made_anew_and_known_keys_and_adapters_are_served(site: Site) -> None:
    home = site.served.gateway.registry.home
    for path in home.root.glob("registry.db*"):
        path.unlink()
    for model in ("acme/support", "tiny"):
        assert await site.infer(model) == 200
    refused = await site.upload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "registry_replaced")
    assert "restart this process" in refused.json()["error"]["message"]
    assert await site.metric("tunery_registry_writable") == 0
    async with asyncio.timeout(60):
        while await site.metric("tunery_keys_age_seconds") < 0.5:
            await asyncio.sleep(0.05)
    assert await site.infer() == 200
    assert not home.database.exists()
    with pytest.raises(StorageFailed) as caught:
        Registry.open(home)
    assert caught.value.code == "registry_lost"


async def test_a_read_only_database_is_read_and_says_that_it_cannot_be_changed(site: Site) -> None:
    database = site.served.gateway.registry.database
    # What SQLite does on a disk that has become read-only; a test cannot make one of a disk in use.
    database._engine.dispose()

    @event.listens_for(database._engine, "connect")
    def make_read_only(connection: object, _: object) -> None:
        connection.execute("PRAGMA query_only=ON")  # type: ignore[attr-defined]

    assert await site.infer() == 200
    assert await site.infer("acme/sales") == 200
    refused = await site.upload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "storage_failed")
    assert "cannot be written" in refused.json()["error"]["message"]
    assert await site.metric("tunery_registry_writable") == 0
    assert await site.metric("tunery_registry_failures_total", code="storage_failed") >= 1
    event.remove(database._engine, "connect", make_read_only)
    database._engine.dispose()
    assert (await site.upload()).status_code == 200
    assert await site.metric("tunery_registry_writable") == 1
