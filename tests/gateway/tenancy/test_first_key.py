"""What a server needs before it listens."""

from __future__ import annotations

import pytest

from tunery.gateway.tenancy.first_key import require_keys
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.configuration.settings import ServeSettings, Settings
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry

ISSUER = OidcSettings(issuer="https://login.example.com", audience=("tunery",))


def said(registry: Registry, *, oidc: OidcSettings, auth: bool = True, host: str = "127.0.0.1") -> list[str]:
    lines: list[str] = []
    settings = Settings(serve=ServeSettings(auth=auth), oidc=oidc)
    require_keys(registry, settings, host=host, own_key=None, say=lines.append)
    return lines


def test_with_an_issuer_no_key_is_made(registry: Registry) -> None:
    assert said(registry, oidc=ISSUER) == []
    assert registry.keys.list() == []
    (line,) = said(registry, oidc=OidcSettings())
    assert "shown this once: tn-" in line


def test_with_an_issuer_all_keys_may_have_ended(registry: Registry) -> None:
    key, _ = registry.keys.create(tenant="acme", scopes=("infer",), actor="test")
    registry.keys.revoke(key.id)
    assert said(registry, oidc=ISSUER) == []
    with pytest.raises(InvalidInput, match="no API key is active"):
        said(registry, oidc=OidcSettings())


def test_an_issuer_is_no_excuse_for_serving_all_without_keys(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="listens on loopback only"):
        said(registry, oidc=ISSUER, auth=False, host="0.0.0.0")
