"""Requests that Tunery sends itself: who may send any, and that none reaches what only this machine's network can.

Webhooks are tested in tests/gateway/webhooks.
"""

from __future__ import annotations

import ast
import socket
from pathlib import Path
from typing import Any

import pytest

import tunery.registry as registry_package
from tests.hub_server import HubServer
from tests.registry.artifacts import make_adapter
from tests.registry.conftest import base, hub
from tunery.registry import Base
from tunery.registry.configuration.webhooks import WebhookEndpoint, WebhooksSettings, problems
from tunery.registry.errors import ArtifactRefused, TuneryError, Unavailable
from tunery.registry.hub.incoming import Destination
from tunery.registry.hub.pull import pull_from_hub
from tunery.registry.registry import Registry

__all__ = ["base", "hub"]

SENDERS = {
    "gateway/bench": "to the server that is measured, on loopback",
    "gateway/cli/eval/remote.py": "to the server that --server names",
    "gateway/cli/jobs": "to the server that --server names",
    "gateway/doctor/server.py": "to the server of the settings, or that --server names",
    "gateway/tenancy/oidc": "to the configured issuer",
    "gateway/top": "to the server that --server names",
    "gateway/tracing": "to the configured collector",
    "gateway/webhooks/sender.py": "to configured hosts, at addresses that were checked",
    "plugins/bases": "to the Hub",
    "plugins/trackers/wandb.py": "to Weights & Biases, with the package of that name",
    "registry/hub": "to the Hub",
}
"""Where requests are sent from; a new place has to be written here, and held to registry/network/addresses.py."""
CLIENTS = (
    "httpx",
    "httpx2",
    "requests",
    "aiohttp",
    "urllib3",
    "urllib.request",
    "http.client",
    "huggingface_hub",
    "wandb",
)
CONNECTS = ("create_connection", "open_connection", "urlopen")


def sends(path: Path) -> bool:
    """Whether a source imports a client of a network or opens a connection."""
    text = path.read_text(encoding="utf-8")
    if not any(word in text for word in (*CLIENTS, *CONNECTS)):
        return False
    for node in ast.walk(ast.parse(text)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name == client or name.startswith(f"{client}.") for name in names for client in CLIENTS):
            return True
        if isinstance(node, ast.Attribute) and node.attr in CONNECTS:
            return True
    return False


def test_who_sends_requests_is_known() -> None:
    root = Path(registry_package.__path__[0]).parent
    found = [
        path.relative_to(root).as_posix()
        for floor in ("registry", "plugins", "gateway")
        for path in sorted((root / floor).rglob("*.py"))
        if sends(path)
    ]
    assert len(found) > 10
    assert [path for path in found if not path.startswith(tuple(SENDERS))] == []


PRIVATE = (
    *("http://169.254.169.254/latest/meta-data", "http://127.0.0.2/x", "http://[::1]/x", "http://[::ffff:10.0.0.1]/x"),
    *("http://2852039166/latest", "http://0251.0376.0251.0376/latest", "http://0xa9fea9fe/latest", "http://0/x"),
    *("https://metadata.internal/x", "http://[fd00::1]/x", "http://100.64.0.1/x"),
)


@pytest.mark.parametrize("place", PRIVATE)
def test_the_hub_redirects_to_public_places_only(
    place: str, registry: Registry, base: Base, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, resolved = make_adapter(tmp_path / "adapter"), socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolved("169.254.169.254" if host == "metadata.internal" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hub.add("x/y", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.redirect = place
    with pytest.raises((ArtifactRefused, Unavailable)) as caught:
        pull_from_hub(registry, "x/y", Destination(adapter="a/b", base=base, actor="test"))
    # An address with octal numbers is no URL for the client at all.
    assert caught.value.code == ("hub_unreachable" if "0251" in place else "hub_redirect_refused")


def test_a_base_is_not_downloaded_from_inside_either(
    hub: HubServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery.plugins.bases.hub import fetch

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub.add("x/y", {"config.json": b"{}", "model.safetensors": b""})
    hub.redirect = "http://169.254.169.254/latest"
    with pytest.raises(ArtifactRefused, match="not a public address"):
        fetch("x/y", None)


def test_a_place_that_cannot_be_resolved_is_none(
    registry: Registry, base: Base, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    hub.add("x/y", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.redirect = "https://nowhere.invalid/x"
    with pytest.raises(Unavailable, match=r"nowhere\.invalid"):
        pull_from_hub(registry, "x/y", Destination(adapter="a/b", base=base, actor="test"))


def test_the_hub_may_redirect_to_itself(registry: Registry, base: Base, hub: HubServer, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    hub.add("x/y", {path.name: path.read_bytes() for path in folder.iterdir()})
    assert pull_from_hub(registry, "x/y", Destination(adapter="a/b", base=base, actor="test")).number == 1


@pytest.mark.parametrize("place", [*PRIVATE, "https://user@hooks.example/x", "ftp://hooks.example/x", "https://"])
def test_webhooks_go_to_hosts_that_are_allowed(place: str) -> None:
    settings = WebhooksSettings(
        allow=("hooks.example",), endpoints=(WebhookEndpoint(url=place, secret="whsec_c2VjcmV0"),)
    )
    assert list(problems(settings))


@pytest.mark.parametrize(
    "name", ["../x/y", "x", "x/../y", "/etc/passwd", "x/y/../../z", "http://169.254.169.254/x", ""]
)
def test_names_of_repositories_are_no_paths_or_urls(name: str, registry: Registry, base: Base, hub: HubServer) -> None:
    with pytest.raises(TuneryError):
        pull_from_hub(registry, name, Destination(adapter="a/b", base=base, actor="test"))
    assert not [path for path in hub.requests if ".." in path]
