"""Bytes of a stored file change on the disk: they are never given to anybody; an adapter's are tested with the engine,
in tests/gateway/test_serve.py and tests/gateway/engine/test_damage.py."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.faults.conftest import FILE, Site


def damage(path: Path) -> None:
    """Change a byte in the middle; the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_a_damaged_upload_is_not_given_back_and_the_others_are(site: Site) -> None:
    files = site.served.gateway.registry.data_files
    broken = (await site.upload()).json()["id"]
    other = {"file": ("other.jsonl", FILE["file"][1] + FILE["file"][1].replace(b"hi", b"ho"))}
    whole = (await site.http.post("/v1/files", files=other, data={"purpose": "fine-tune"})).json()["id"]
    damage(files.path(files.get(broken, tenant="acme")))
    refused = await site.http.get(f"/v1/files/{broken}/content")
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "file_damaged")
    assert "upload it again" in refused.json()["error"]["message"]
    assert (await site.http.get(f"/v1/files/{whole}/content")).content == other["file"][1]
    assert (await site.upload()).status_code == 200
    assert (await site.http.get(f"/v1/files/{broken}/content")).content == FILE["file"][1], "uploading it repairs it"


@pytest.mark.slow
async def test_a_batch_whose_input_is_damaged_fails_and_asks_nothing(site: Site) -> None:
    body = {"model": "acme/support", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    files = site.served.gateway.registry.data_files
    upload = {"file": ("requests.jsonl", json.dumps(line).encode() + b"\n")}
    file = (await site.http.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
    damage(files.path(files.get(file, tenant="acme")))
    asked = len(site.served.engine.requests)
    made = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await site.http.post("/v1/batches", json=made)).json()
    async with asyncio.timeout(60):
        while batch["status"] not in ("failed", "completed"):
            await asyncio.sleep(0.05)
            batch = (await site.http.get(f"/v1/batches/{batch['id']}")).json()
    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "file_damaged")
    assert len(site.served.engine.requests) == asked
