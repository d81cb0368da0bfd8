"""What the claims of a genuine token mean here: its tenant, scopes, adapters, and who it was issued for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from tunery.gateway.tenancy.credential import TokenRefused
from tunery.gateway.tenancy.principal import Principal
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.errors import InvalidInput
from tunery.registry.keys.api_key import check_patterns, check_tenant
from tunery.registry.names import SCOPES

__all__ = ["principal_for"]

_PLAIN_SUBJECT = re.compile(r"[A-Za-z0-9._@|:+=/-]{1,64}")


def principal_for(claims: Mapping[str, Any], settings: OidcSettings) -> Principal:
    """Whoever holds a token with these claims; raise TokenRefused where they do not say what they must."""
    return Principal.with_rights(
        tenant=_tenant(claims, settings),
        scopes=_scopes(claims, settings),
        adapters=_adapters(claims, settings),
        key=f"oidc:{_subject(claims['sub'])}",
    )


def _tenant(claims: Mapping[str, Any], settings: OidcSettings) -> str:
    # A name is never made to fit: Acme and acme may be two customers of the issuer.
    value = _claim(claims, settings.tenant_claim)
    try:
        return check_tenant(value if isinstance(value, str) else "")
    except InvalidInput as error:
        raise _unusable(settings.tenant_claim, "the name of a tenant, such as acme", code="invalid_tenant") from error


def _scopes(claims: Mapping[str, Any], settings: OidcSettings) -> tuple[str, ...]:
    words = _words(_claim(claims, settings.scopes_claim)) or []
    granted = {scope for word in words for scope in settings.scopes.get(word, "").split()}
    return tuple(scope for scope in SCOPES if scope in (granted or settings.default_scopes))


def _adapters(claims: Mapping[str, Any], settings: OidcSettings) -> tuple[str, ...] | None:
    """Patterns of adapters, None for all of the tenant's. A claim that is configured and missing allows none."""
    if not settings.adapters_claim:
        return None
    words = _words(_claim(claims, settings.adapters_claim, missing=[]))
    try:
        if words is not None:
            return check_patterns(words)
    except InvalidInput:
        pass
    raise _unusable(settings.adapters_claim, "a list of patterns such as acme/*", code="invalid_adapters")


def _subject(subject: str) -> str:
    """The subject as it is, or a hash of one that is long or has characters that do not belong into a log."""
    if _PLAIN_SUBJECT.fullmatch(subject):
        return subject
    return "~" + hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _claim(claims: Mapping[str, Any], name: str, *, missing: Any = None) -> Any:
    """A claim by its name, which may be a URL, or by the way to it, such as realm_access.roles."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return missing
        value = value[part]
    return value


def _words(value: Any) -> list[str] | None:
    """The words of a text or a list of texts; None for anything else."""
    if isinstance(value, str):
        return value.split()
    return value if isinstance(value, list) and all(isinstance(word, str) for word in value) else None


def _unusable(claim: str, wanted: str, *, code: str) -> TokenRefused:
    return TokenRefused(f"the token's claim {claim} is not {wanted}; its issuer has to add it", code=code, genuine=True)
