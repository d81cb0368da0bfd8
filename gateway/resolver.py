"""Owns going from the model a client names to the version that answers; refuses to fall back on the base.

What was resolved is kept until anybody, in any process, commits to the registry, so that a moved alias takes effect with the
next request and an unmoved one costs no query.
"""

from __future__ import annotations

import msgspec

from tunery.gateway.engine.messages import AdapterSource
from tunery.registry import Base, Version
from tunery.registry.artifacts import CONFIG, WEIGHTS
from tunery.registry.errors import InvalidInput, NotFound, near
from tunery.registry.registry import Registry

__all__ = ["Resolver", "Target"]

LONGEST_NAME = 256


class Target(msgspec.Struct, frozen=True):
    """What answers a request: a version on the base, or (None) the bare base."""

    base: Base
    version: Version | None
    source: AdapterSource | None

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the base's and the version's identity."""
        return f"tunery-{self.base.digest[:10]}-{self.version.digest[:10] if self.version else 'base'}"

    def headers(self) -> dict[str, str]:
        """What the response says of who answered."""
        headers = {"x-tunery-base": f"{self.base.name}@{self.base.digest[:12]}"}
        if self.version is not None:
            headers |= {
                "x-tunery-adapter": self.version.adapter,
                "x-tunery-version": str(self.version.number),
                "x-tunery-digest": self.version.digest,
            }
        return headers


class Resolver:
    """Resolves names against one served base."""

    def __init__(self, registry: Registry, base: Base) -> None:
        self._registry = registry
        self.base = base
        self._bare = Target(base, None, None)
        self._seen = -1
        self._known: dict[str, Target] = {}

    def resolve(self, model: str, *, adapter: str | None = None) -> Target:
        """The target of a request for `model`; `adapter` (a field or header) chooses when `model` is the base's name."""
        if self._is_base(model):
            return self._bare if adapter is None else self._version(adapter, "adapter")
        if adapter is not None and adapter != model:
            raise InvalidInput(
                f"the model {model!r} and the adapter {adapter!r} disagree; name the adapter once, or the base as model",
                param="adapter",
            )
        return self._version(model, "model")

    def _is_base(self, name: str) -> bool:
        # A Hub id looks like an adapter's name; where there is such an adapter, that is what is meant.
        return name == self.base.name or (name == self.base.source and name not in self._registry.adapters())

    def _version(self, reference: str, param: str) -> Target:
        if len(reference) > LONGEST_NAME:
            raise NotFound(
                f"the model {reference[:20]!r}… does not exist: no name is longer than {LONGEST_NAME} characters",
                code="model_not_found",
                param=param,
            )
        changes = self._registry.changes()
        if changes != self._seen:
            self._known.clear()
            self._seen = changes
        if reference not in self._known:
            self._known[reference] = self._look_up(reference, param)
        return self._known[reference]

    def _look_up(self, reference: str, param: str) -> Target:
        try:
            version = self._registry.resolve(reference)
        except (NotFound, InvalidInput) as error:
            message = error.message
            if "/" not in reference:
                message = f"the model {reference!r} does not exist: {near(reference, self.names())}"
            raise NotFound(message, code="model_not_found", param=param) from error
        if version.base_digest != self.base.digest:
            raise NotFound(
                f"{version.name} was trained on {version.base} ({version.base_digest[:12]}); this server has "
                f"{self.base.name} ({self.base.digest[:12]}) in memory",
                code="model_not_found",
                param=param,
            )
        files = self._registry.files(version)
        served = {name: str(files[name]) for name in (CONFIG, WEIGHTS)}
        return Target(self.base, version, AdapterSource(version.digest, version.adapter, version.number, served))

    def names(self) -> list[str]:
        """Every model name there is: the base's and the adapters'."""
        return [self.base.name, *self._registry.adapters()]

    def served(self) -> list[Version]:
        """What each adapter's bare name means now, of the adapters that fit the served base."""
        return [version for version in self._registry.latest() if version.base_digest == self.base.digest]
