"""Keys and tokens are found through one call."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunery.gateway.tenancy import credentials as module
from tunery.gateway.tenancy.credentials import Credentials, open_credentials
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.errors import Unavailable
from tunery.registry.registry import Registry


class Store:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def find(self, token: str) -> Principal | None:
        self.asked.append(token)
        return None


async def test_each_store_is_asked_for_its_own_kind() -> None:
    keys, tokens = Store(), Store()
    both = Credentials(keys, tokens)
    for token in ("a.b.c", "tn-a.b.c", "tn-a.b", "a.b", "", "a.b.c.d.e", "unused"):
        assert await both.find(token) is None
    assert tokens.asked == ["a.b.c"]
    assert await Credentials(keys).find("a.b.c") is None
    assert keys.asked[-1] == "a.b.c"


def test_without_the_packages_a_server_with_an_issuer_does_not_start(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    issuer = OidcSettings(issuer="https://login.example.com", audience=("a",))
    with pytest.raises(Unavailable, match=r"pip install 'tunery\[oidc\]'"):
        open_credentials(registry, issuer)
    open_credentials(registry, OidcSettings())


def test_without_an_issuer_nothing_of_it_is_imported() -> None:
    code = "import sys, tunery.gateway.app; sys.exit('jwt' in sys.modules or 'cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
