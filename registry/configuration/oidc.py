"""The settings of OpenID Connect: whose tokens are accepted beside API keys, and what their claims mean here.

Only shapes are checked here. The issuer is asked for its keys while the gateway runs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from tunery.registry.errors import near
from tunery.registry.names import SCOPES
from tunery.registry.values import about

__all__ = ["ALGORITHMS", "OidcSettings", "problems", "url_problem"]

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""The algorithms that may be allowed: all are asymmetric, so that nobody who knows a public key can sign."""
MAX_URL = 2000
Seconds = Annotated[int, Meta(ge=1, le=86_400)]


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OpenID Connect: JSON web tokens of one issuer, accepted beside API keys."""

    issuer: Annotated[
        str, about("The URL of the issuer, as the claim iss has it; none: only API keys are accepted.")
    ] = ""
    audience: Annotated[
        tuple[str, ...], about("Values of the claim aud that are meant for this server, separated by commas.")
    ] = ()
    algorithms: Annotated[
        tuple[str, ...], about("Algorithms that tokens may be signed with, separated by commas; only asymmetric ones.")
    ] = ("RS256", "ES256", "EdDSA")
    tenant_claim: Annotated[str, about("The claim that names the tenant; a dot leads into an object.")] = "tenant"
    scopes_claim: Annotated[str, about("The claim with the scopes: a list, or text with spaces between them.")] = (
        "scope"
    )
    scopes: Annotated[
        dict[str, str],
        about("The scopes that each value of that claim grants, with spaces between them."),
    ] = msgspec.field(default_factory=lambda: {f"tunery:{scope}": scope for scope in SCOPES})
    default_scopes: Annotated[
        tuple[str, ...], about("Scopes of a token whose claim grants none, separated by commas.")
    ] = ()
    adapters_claim: Annotated[
        str, about("The claim with patterns of the adapters that a token may use; none: all of its tenant.")
    ] = ""
    leeway_seconds: Annotated[
        int, Meta(ge=0, le=600), about("How far the issuer's clock may differ from this machine's.")
    ] = 30
    jwks_uri: Annotated[str, about("Where the issuer's keys are; none: where its discovery document says.")] = ""
    refresh_seconds: Annotated[Seconds, about("Seconds after which the issuer's keys are read again.")] = 3600
    cooldown_seconds: Annotated[
        Seconds, about("Seconds between two looks for keys that tokens name and that are not known.")
    ] = 10
    ca_file: Annotated[
        str, about("A file of certificates that the issuer's is checked against; none: those that the system trusts.")
    ] = ""


def problems(settings: OidcSettings) -> Iterator[str]:
    """What is wrong with the settings, a line each."""
    if not settings.issuer:
        if settings != OidcSettings():
            yield "oidc.issuer is missing; it is the URL that the issuer's tokens have as iss"
        return
    for name, url in (("issuer", settings.issuer), ("jwks_uri", settings.jwks_uri)):
        if url and (problem := url_problem(url)) is not None:
            yield f"oidc.{name} {problem}"
    if not settings.audience or not all(settings.audience):
        yield "oidc.audience is missing: without it a token for any other service of the issuer would be good here"
    if not settings.tenant_claim or not settings.scopes_claim:
        yield "oidc.tenant_claim and oidc.scopes_claim must name a claim"
    yield from _name_problems("algorithms", settings.algorithms, ALGORITHMS)
    if not settings.algorithms:
        yield f"oidc.algorithms is empty; name some of {', '.join(ALGORITHMS)}"
    yield from _name_problems("default_scopes", settings.default_scopes, SCOPES)
    for value, scopes in settings.scopes.items():
        yield from _name_problems(f"scopes.{value}", scopes.split(), SCOPES)
        if not scopes.split() or value.split() != [value]:
            yield f"oidc.scopes: {value!r}={scopes!r} is not one word and the scopes that it grants"


def url_problem(url: str) -> str | None:
    """Why a URL of the issuer is not acceptable: what it answers with decides who may enter."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return "is not a URL such as https://login.example.com"
    if parts.username is not None or parts.query or parts.fragment:
        return "has a user name, a query or a fragment; leave them out"
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        return "must begin with https://; http:// is for loopback only"
    return None


def _name_problems(setting: str, names: tuple[str, ...] | list[str], known: tuple[str, ...]) -> Iterator[str]:
    yield from (f"oidc.{setting}: unknown {name!r}: {near(name, known)}" for name in names if name not in known)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
