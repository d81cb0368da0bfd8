"""The disk of the home is full: inference goes on, changes say why they fail, and work again when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Site
from tests.small_disk import fill_disk, mounted_disk


@pytest.fixture
def home_folder(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", "8m") as disk:
        yield disk / "home"


async def test_a_full_disk_stops_no_inference(site: Site) -> None:
    disk = site.served.gateway.registry.home.root.parent
    assert await site.metric("tunery_disk_free_bytes", place="home") > 0
    filler = fill_disk(disk)
    assert await site.infer() == 200
    refused = await site.upload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "disk_full")
    assert "free some space" in refused.json()["error"]["message"]
    assert await site.metric("tunery_disk_free_bytes", place="home") < 64 * 1024
    assert await site.metric("tunery_http_errors_total", status="500", code="disk_full") == 1
    assert await site.infer("acme/sales") == 200
    filler.unlink()
    assert (await site.upload()).status_code == 200
    assert await site.infer() == 200
