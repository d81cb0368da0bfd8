"""Owns going from the model a client names to the version that answers; refuses to fall back on the base.

What was resolved is kept until anybody, in any process, commits to the registry, so that a moved alias takes effect with the
next request and an unmoved one costs no query.
"""

from __future__ import annotations

import msgspec

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter, composition_digest, composition_title
from tunery.gateway.metrics.table import COMPOSITION
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput, NotFound, near
from tunery.registry.names import MAX_PARTS, parse_composition, tenant_of
from tunery.registry.peft.artifact import CONFIG, WEIGHTS
from tunery.registry.registry import Registry

__all__ = ["Resolver", "Target"]

LONGEST_NAME = 256


class Target(msgspec.Struct, frozen=True):
    """What answers a request: the versions of `composition` on the base, each with its weight; the bare base when there are none."""

    base: Base
    versions: tuple[Version, ...] = ()
    composition: tuple[WeightedAdapter, ...] = ()

    @property
    def version(self) -> Version | None:
        """The version, when exactly one answers."""
        return self.versions[0] if len(self.versions) == 1 else None

    @property
    def tenant(self) -> str:
        """Who is charged: the tenant of the first adapter; for the bare base, nobody."""
        return tenant_of(self.versions[0].adapter) if self.versions else ""

    @property
    def label(self) -> str | None:
        """What metrics call it: the adapter, `mix` for several, None for the bare base."""
        return self.version.adapter if self.version else COMPOSITION if self.versions else None

    @property
    def title(self) -> str | None:
        """What the access log calls it: the adapter, or all parts of a composition."""
        return self.version.adapter if self.version else composition_title(self.composition) or None

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the identity of the base and of what is on it."""
        return f"tunery-{self.base.digest[:10]}-{composition_digest(self.composition)[:10] or 'base'}"

    def headers(self) -> dict[str, str]:
        """What the response says of who answered; the parts of a composition are joined by commas."""
        headers = {"x-tunery-base": f"{self.base.name}@{self.base.digest[:12]}"}
        if self.versions:
            headers |= {
                "x-tunery-adapter": ",".join(version.adapter for version in self.versions),
                "x-tunery-version": ",".join(str(version.number) for version in self.versions),
                "x-tunery-digest": ",".join(version.digest for version in self.versions),
            }
        if any(part.weight != 1.0 for part in self.composition):
            headers["x-tunery-weight"] = ",".join(f"{part.weight:g}" for part in self.composition)
        return headers


class Resolver:
    """Resolves names against one served base."""

    def __init__(self, registry: Registry, base: Base) -> None:
        self._registry = registry
        self.base = base
        self._bare = Target(base)
        self._seen = -1
        self._known: dict[str, Target] = {}
        self._adapters: tuple[str, ...] | None = None

    def resolve(self, model: str, *, adapter: str | None = None) -> Target:
        """The target of a request for `model`; `adapter` (a field or header) chooses when `model` is the base's name.

        Either may be a composition.
        """
        if self._is_base(model):
            return self._bare if adapter is None else self._composition(adapter, "adapter")
        if adapter is not None and adapter != model:
            raise InvalidInput(
                f"the model {model!r} and the adapter {adapter!r} disagree; name the adapter once, or the base as model",
                param="adapter",
            )
        return self._composition(model, "model")

    def resolve_one(self, name: str, *, param: str = "model") -> Target:
        """The target of `name` where a composition makes no sense: what is loaded or described is one version, or the base."""
        if "+" in name or ":" in name:
            raise InvalidInput(
                f"{name[:LONGEST_NAME]!r} is a composition, which only inference endpoints take; name one adapter without a weight",
                param=param,
            )
        return self._bare if self._is_base(name) else self._version(name, param)

    def _composition(self, text: str, param: str) -> Target:
        """One reference, or several with weights. Only the parts are kept, since weights are without end."""
        if not {"+", ":"} & set(text) or len(text) > MAX_PARTS * LONGEST_NAME:
            return self._version(text, param)
        try:
            parts = parse_composition(text)
        except InvalidInput as error:
            if error.code == "invalid_name":
                raise NotFound(error.message, code="model_not_found", param=param) from error
            raise InvalidInput(error.message, code=error.code, param=param) from error
        targets = [self._version(str(part.reference), param) for part in parts]
        versions = tuple(version for target in targets for version in target.versions)
        if len({version.digest for version in versions}) < len(versions):
            raise InvalidInput(
                f"{text!r} has one version twice, by different references; add its weights",
                code="invalid_composition",
                param=param,
            )
        composition = [
            WeightedAdapter(target.composition[0].source, part.weight)
            for target, part in zip(targets, parts, strict=True)
        ]
        return Target(self.base, versions, tuple(composition))

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
        self._notice_changes()
        if reference not in self._known:
            self._known[reference] = self._look_up(reference, param)
        return self._known[reference]

    def _notice_changes(self) -> None:
        """Forget what was resolved before the latest commit."""
        changes = self._registry.changes()
        if changes != self._seen:
            self._known.clear()
            self._adapters = None
            self._seen = changes

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
        digests = {entry.path: entry.sha256 for entry in version.files if entry.path in served}
        source = AdapterSource(version.digest, version.adapter, version.number, served, digests)
        return Target(self.base, (version,), (WeightedAdapter(source),))

    def names(self) -> list[str]:
        """Every model name there is: the base's and the adapters'."""
        return [self.base.name, *self._registry.adapters()]

    def adapters(self) -> tuple[str, ...]:
        """The adapters that fit the served base."""
        self._notice_changes()
        if self._adapters is None:
            self._adapters = tuple(version.adapter for version in self.served())
        return self._adapters

    def served(self) -> list[Version]:
        """What each adapter's bare name means now, of the adapters that fit the served base."""
        return [version for version in self._registry.latest() if version.base_digest == self.base.digest]
