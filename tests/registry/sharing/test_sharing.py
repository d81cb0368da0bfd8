"""Sharing adapters: with whom, what cannot be, and that it ends with the adapter."""

from __future__ import annotations

import pytest

from tests.registry.conftest import Publish
from tunery.registry.errors import InvalidInput, NotFound
from tunery.registry.registry import Registry


def tenants(registry: Registry, adapter: str = "acme/support") -> tuple[str, ...]:
    share = registry.sharing.get(adapter)
    return share.tenants if share else ()


def test_tenants_are_added_and_taken_away(registry: Registry, publish: Publish) -> None:
    publish()
    registry.sharing.share("acme/support", ["initech", "globex"], actor="test")
    assert tenants(registry) == ("globex", "initech")
    registry.sharing.share("acme/support", ["hooli"], actor="test", share_prefixes=True)
    assert tenants(registry) == ("globex", "hooli", "initech")
    left = registry.sharing.unshare("acme/support", ["initech"], actor="test")
    assert left is not None
    assert (left.tenants, left.share_prefixes) == (("globex", "hooli"), True)
    registry.sharing.share("acme/support", ["globex"], actor="test", only=True)
    assert tenants(registry) == ("globex",)
    registry.sharing.share("acme/support", ["all"], actor="test")
    assert tenants(registry) == ("all",)
    assert [share.covers("anybody") for share in registry.sharing.all()] == [True]
    with pytest.raises(NotFound, match="not shared with globex"):
        registry.sharing.unshare("acme/support", ["globex"], actor="test")
    assert registry.sharing.unshare("acme/support", actor="test") is None
    assert registry.sharing.all() == []
    with pytest.raises(NotFound, match="not shared with anybody"):
        registry.sharing.unshare("acme/support", actor="test")


@pytest.mark.parametrize(
    ("adapter", "names", "error", "message"),
    [
        ("acme/support", ["acme"], InvalidInput, "acme/support is acme's own"),
        ("acme/support", [], InvalidInput, "name 1 to 1000 tenants"),
        ("acme/support", ["Globex"], InvalidInput, "'Globex' is not a tenant"),
        ("acme/support", [f"t{n}" for n in range(1001)], InvalidInput, "name 1 to 1000 tenants"),
        ("acme/suport", ["globex"], NotFound, "did you mean 'acme/support'"),
        ("acme", ["globex"], InvalidInput, "is not an adapter name"),
    ],
)
def test_what_cannot_be_shared(
    adapter: str, names: list[str], error: type[Exception], message: str, registry: Registry, publish: Publish
) -> None:
    publish()
    publish("acmf/suport")
    with pytest.raises(error, match=message) as raised:
        registry.sharing.share(adapter, names, actor="test")
    assert "acmf" not in str(raised.value)
    assert registry.sharing.all() == []


def test_another_adapter_of_the_name_is_not_shared(registry: Registry, publish: Publish) -> None:
    publish()
    publish(seed=1)
    registry.sharing.share("acme/support", ["all"], actor="test")
    registry.remove("acme/support@1", actor="test")
    assert tenants(registry) == ("all",)
    registry.remove("acme/support@2", actor="test")
    publish()
    assert tenants(registry) == ()


def test_no_tenant_is_called_all(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match="stands for every tenant"):
        registry.keys.create(tenant="all", scopes=("infer",), actor="test")
