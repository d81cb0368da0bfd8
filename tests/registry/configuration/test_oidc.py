"""The settings of OpenID Connect."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.registry.configuration.oidc import ALGORITHMS, OidcSettings, problems
from tunery.registry.configuration.settings import read_settings
from tunery.registry.errors import InvalidInput

GOOD = {"issuer": "https://login.example.com/", "audience": ("tunery",)}


def test_there_is_no_issuer_unless_it_is_configured() -> None:
    assert list(problems(OidcSettings())) == []


def test_they_are_read_from_the_file_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[oidc]\nissuer = "https://login.example.com"\naudience = ["tunery"]\n[oidc.scopes]\nml-team = "infer train"\n'
    )
    environment = {"TUNERY_OIDC_ALGORITHMS": "ES256,EdDSA", "TUNERY_OIDC_DEFAULT_SCOPES": "infer"}
    oidc = read_settings(tmp_path, environ=environment).oidc
    assert oidc.scopes == {"ml-team": "infer train"}
    assert oidc.algorithms == ("ES256", "EdDSA")
    assert oidc.default_scopes == ("infer",)
    oidc = read_settings(tmp_path, environ={"TUNERY_OIDC_SCOPES": "a=infer,b=infer train"}).oidc
    assert oidc.scopes == {"a": "infer", "b": "infer train"}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost/x", "http://[::1]:80", "https://10.0.0.1/realm/a"]
)
def test_good_issuers(url: str) -> None:
    assert list(problems(OidcSettings(issuer=url, audience=("a",)))) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"issuer": ""}, "oidc.issuer is missing"),
        ({"issuer": "http://login.example.com"}, "oidc.issuer must begin with https://"),
        ({"issuer": "login.example.com"}, "oidc.issuer is not a URL"),
        ({"issuer": "https://a.test/?tenant=a"}, "oidc.issuer has a user name, a query or a fragment"),
        ({"issuer": "https://a:b@a.test"}, "oidc.issuer has a user name"),
        ({"issuer": "https://a.test:x"}, "oidc.issuer is not a URL"),
        ({"issuer": "https://a.test/\n"}, "oidc.issuer is not a URL"),
        ({"jwks_uri": "ftp://a.test/keys"}, "oidc.jwks_uri must begin with https://"),
        ({"audience": ()}, "oidc.audience is missing"),
        ({"audience": ("",)}, "oidc.audience is missing"),
        ({"algorithms": ("RS256", "HS256")}, "oidc.algorithms: unknown 'HS256'"),
        ({"algorithms": ("none",)}, "oidc.algorithms: unknown 'none'"),
        ({"algorithms": ()}, "oidc.algorithms is empty"),
        ({"tenant_claim": ""}, "must name a claim"),
        ({"default_scopes": ("infr",)}, "oidc.default_scopes: unknown 'infr': did you mean 'infer'?"),
        ({"scopes": {"ml-team": "infer trian"}}, "oidc.scopes.ml-team: unknown 'trian': did you mean 'train'"),
        ({"scopes": {"ml-team": ""}}, "'ml-team'='' is not one word and the scopes that it grants"),
        ({"scopes": {"ml team": "infer"}}, "'ml team'='infer' is not one word"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, object], message: str) -> None:
    found = list(problems(OidcSettings(**{**GOOD, **changed})))  # type: ignore[arg-type]
    assert len(found) == 1
    assert message in found[0]


def test_problems_are_reported_with_all_others(tmp_path: Path) -> None:
    environment = {"TUNERY_OIDC_ISSUER": "http://a.test", "TUNERY_SERVE_PORT": "99999"}
    with pytest.raises(InvalidInput, match=r"99999[^$]*oidc\.issuer must[^$]*oidc\.audience is missing"):
        read_settings(tmp_path, environ=environment)


def test_no_symmetric_algorithm_may_be_allowed() -> None:
    assert not [name for name in ALGORITHMS if name.startswith("HS") or name == "none"]
