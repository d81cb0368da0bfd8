"""What the claims of a token mean here."""

from __future__ import annotations

from typing import Any

import pytest

from tunery.gateway.tenancy.credential import TokenRefused
from tunery.gateway.tenancy.oidc.claims import principal_for
from tunery.registry.configuration.oidc import OidcSettings


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "alice", "tenant": "acme", "scope": "tunery:infer tunery:train openid", **more}


def test_a_token_names_its_tenant_and_scopes() -> None:
    principal = principal_for(claims(), OidcSettings())
    assert (principal.tenant, principal.scopes, principal.key) == ("acme", ("infer", "train"), "oidc:alice")
    assert principal.adapters == ("acme/*",)
    assert principal.actor == "key:oidc:alice"


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("", ()),
        (None, ()),
        ("openid profile", ()),
        ("infer admin", ()),
        ("tunery:infer,tunery:train", ()),
        (["tunery:train", "tunery:infer"], ("infer", "train")),
        (["tunery:infer tunery:train"], ()),
        (["tunery:infer", 5], ()),
        ({"tunery:infer": True}, ()),
        (True, ()),
    ],
)
def test_scopes_are_text_or_a_list(value: Any, scopes: tuple[str, ...]) -> None:
    assert principal_for(claims(scope=value), OidcSettings()).scopes == scopes


def test_values_of_the_issuer_are_mapped_and_there_may_be_a_default() -> None:
    settings = OidcSettings(
        scopes_claim="realm_access.roles", scopes={"ml-team": "train infer"}, default_scopes=("infer",)
    )
    roles = claims(realm_access={"roles": ["ml-team", "tunery:admin"]})
    assert principal_for(roles, settings).scopes == ("infer", "train")
    assert principal_for(claims(), settings).scopes == ("infer",)
    assert principal_for(claims(realm_access=["roles"]), settings).scopes == ("infer",)


def test_a_claim_may_be_named_by_a_url() -> None:
    settings = OidcSettings(tenant_claim="https://example.com/tenant")
    assert principal_for(claims(**{"https://example.com/tenant": "globex"}), settings).tenant == "globex"


@pytest.mark.parametrize(
    "tenant", [None, "", "Acme", "acme/x", "acme*", "..", "a" * 65, 5, ["acme"], "acme ", "acme\n"]
)
def test_a_tenant_is_never_guessed(tenant: Any) -> None:
    with pytest.raises(TokenRefused, match="claim tenant is not the name of a tenant") as caught:
        principal_for(claims(tenant=tenant), OidcSettings())
    assert caught.value.genuine


def test_adapters_are_limited_by_a_claim_that_is_configured() -> None:
    settings = OidcSettings(adapters_claim="adapters")
    for value, adapters in (
        ("acme/a* acme/b", ("acme/a*", "acme/b")),
        (["acme/b"], ("acme/b",)),
        ([], ()),
        ("", ()),
    ):
        assert principal_for(claims(adapters=value), settings).adapters == adapters
    assert not principal_for(claims(), settings).may_use("acme/a"), "missing allows none"
    for wrong in (["*"], ["acme/b", 5], {"acme/b": 1}, None, 5, ["acme/b c"]):
        with pytest.raises(TokenRefused, match="claim adapters is not a list of patterns"):
            principal_for(claims(adapters=wrong), settings)


def test_an_admin_sees_all_tenants() -> None:
    assert principal_for(claims(scope="tunery:admin"), OidcSettings()).adapters is None


@pytest.mark.parametrize("subject", ["", "a" * 65, "a\nb", "a b", "~" + "0" * 32, "\ud800", "ä"])
def test_a_strange_subject_is_hashed(subject: str) -> None:
    key = principal_for(claims(sub=subject), OidcSettings()).key
    assert key is not None
    assert key.startswith("oidc:~")
    assert len(key) == 38
    assert key != principal_for(claims(sub=subject + "x"), OidcSettings()).key
    assert subject == "" or subject not in key
