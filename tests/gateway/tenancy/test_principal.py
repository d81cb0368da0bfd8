"""What a key lets its holder use, see and make."""

from __future__ import annotations

from tunery.gateway.tenancy.principal import Principal
from tunery.registry.keys.api_key import SCOPES, new_key


def principal(*adapters: str, scopes: tuple[str, ...] = ("infer", "train")) -> Principal:
    key, _ = new_key(tenant="acme", scopes=scopes, adapters=adapters, created_at=0.0, created_by="test")
    return Principal.of(key)


def test_a_tenants_key_is_for_its_own_adapters() -> None:
    own = principal()
    assert own.may_use("acme/support")
    assert own.may_make("acme/support")
    for name in ("acme2/support", "globex/acme", "globex/support"):
        assert not own.may_use(name)
        assert not own.may_make(name)


def test_patterns_say_which_adapters_a_key_may_use() -> None:
    some = principal("acme/support*", "shared/tone")
    names = ("acme/support-2", "acme/sales", "shared/tone", "shared/other")
    assert [some.may_use(name) for name in names] == [True, False, True, False]
    # Another tenant's adapter may be used, and not changed.
    assert [some.may_make(name) for name in names] == [True, False, False, False]


def test_an_admin_uses_and_makes_all() -> None:
    admin = principal(scopes=SCOPES)
    assert admin.may_use("globex/support")
    assert admin.may_make("globex/support")
