"""A real server with keys: the admin API at its own port, and prefixes that no other tenant's request finds."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.gateway.serve_process import TINY, publish, random_loras, start_server
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry

pytestmark = pytest.mark.slow

PROMPT = "one two three four five six seven eight nine ten " * 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_tenants_share_no_prefix_and_administration_has_its_port(tmp_path: Path, tiny_base_folder: Path) -> None:
    home, admin_port = Home(tmp_path / "home"), free_port()
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="tiny")
        publish(registry, base, random_loras(tmp_path, tiny_base_folder, 1), name=lambda _: "acme/support")
        # Another name for the same weights.
        publish(registry, base, [tmp_path / "lora-0"], name=lambda _: "acme/again")
        registry.sharing.share("acme/support", ["globex"], actor="test")
        registry.sharing.share("acme/again", ["globex"], actor="test", share_prefixes=True)
        _, admin = registry.keys.create(tenant="platform", scopes=("admin",), actor="test")
        tokens = {
            name: registry.keys.create(tenant=name, scopes=("infer",), actor="test")[1] for name in ("acme", "globex")
        }
    with start_server(tmp_path, home, "tiny", *TINY, "--auth", "--admin-port", str(admin_port)) as server:

        def cached(tenant: str, model: str) -> int:
            body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
            headers = {"authorization": f"Bearer {tokens[tenant]}"}
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200, answer.text
            found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            return found

        for model in ("tiny", "acme/support"):
            assert [cached("acme", model), cached("globex", model)] == [0, 0], model
            assert cached("acme", model) > 0, model
            assert cached("globex", model) > 0, model
        # Where the owner shares prefixes too, one finds what the other has asked; of this adapter and of no other.
        assert cached("globex", "acme/again") == 0
        assert cached("acme", "acme/again") > 0

        key = {"authorization": f"Bearer {admin}"}
        own = f"http://127.0.0.1:{admin_port}"
        assert httpx.get(f"{own}/admin/v1/state", headers=key).json()["engine"]["state"] == "ready"
        assert httpx.get(f"{own}/health/ready").status_code == 200
        assert httpx.get(f"{own}/v1/models", headers=key).status_code == 404
        for path in ("/admin/v1/state", "//admin/v1/keys"):
            refused = httpx.get(server.url + path, headers=key)
            assert refused.status_code == 404
            assert "x-request-id" in refused.headers
        assert httpx.request("OPTIONS", f"{server.url}/admin/v1/keys").status_code == 404
        assert any(line == f"admin API: {own}/admin/v1" for line in server.lines())
        server.process.terminate()
        assert server.process.wait(60) == 0
