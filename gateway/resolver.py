"""Resolves the model that a request names to the adapter versions that answer it. It never falls back on the base.

Results are cached until any process commits to the registry, so a moved alias takes effect with the next request, and
an unmoved one costs no query. Another tenant's adapters get the same error as adapters that do not exist; `by` is who
asks, None for this server itself.
"""

from __future__ import annotations

import msgspec

from tunery.gateway.engine.composition import AdapterSource, WeightedAdapter, composition_digest, composition_title
from tunery.gateway.jobs.model_names import is_checkpoint_name, is_tuned_name
from tunery.gateway.metrics.table import COMPOSITION
from tunery.gateway.tenancy.principal import Principal
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput, NotFound, near
from tunery.registry.names import MAX_PARTS, parse_composition, tenant_of
from tunery.registry.peft.layout import CONFIG, WEIGHTS
from tunery.registry.registry import Registry

__all__ = ["Resolver", "Target"]

MAX_NAME_LENGTH = 256


class Target(msgspec.Struct, frozen=True):
    """What answers a request: the adapter versions of `composition` on the base, or the bare base without any.

    `charged` is the tenant whose share it takes, where the request's key says so.
    """

    base: Base
    versions: tuple[Version, ...] = ()
    composition: tuple[WeightedAdapter, ...] = ()
    charged: str | None = None

    @property
    def version(self) -> Version | None:
        """The version, when exactly one answers."""
        return self.versions[0] if len(self.versions) == 1 else None

    @property
    def tenant(self) -> str:
        """The tenant that is charged: the key's, else the first adapter's, or none (an empty string) for the bare base."""
        if self.charged is not None:
            return self.charged
        return tenant_of(self.versions[0].adapter) if self.versions else ""

    @property
    def label(self) -> str | None:
        """What metrics call it: the adapter, `mix` for several, None for the bare base."""
        return self.version.adapter if self.version else COMPOSITION if self.versions else None

    @property
    def title(self) -> str | None:
        """The adapter, or all parts of a composition, for the access log."""
        return self.version.adapter if self.version else composition_title(self.composition) or None

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: identifies the base and what is applied to it."""
        return f"tunery-{self.base.digest[:10]}-{composition_digest(self.composition)[:10] or 'base'}"

    def headers(self) -> dict[str, str]:
        """Response headers that say what answered; the parts of a composition are joined by commas."""
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
    """Resolves names to versions trained on the served base."""

    def __init__(self, registry: Registry, base: Base) -> None:
        self._registry = registry
        self.base = base
        self._bare_base = Target(base)
        self._changes = -1
        self._targets: dict[str, Target] = {}
        self._adapters: tuple[str, ...] | None = None
        self._tuned_names: dict[str, tuple[str, int]] | None = None

    def resolve(self, model: str, *, adapter: str | None = None, by: Principal | None = None) -> Target:
        """The target of a request for `model`, or for `adapter` (a field or header) when `model` is the base's name.

        Either may be a composition, or a name in OpenAI's form. Raises NotFound for a model that does not exist or is
        not on this base, and InvalidInput when the two disagree or a composition is malformed.
        """
        target = self._resolve(model, adapter, by)
        return target if by is None or by.charged is None else msgspec.structs.replace(target, charged=by.charged)

    def _resolve(self, model: str, adapter: str | None, by: Principal | None) -> Target:
        model = self._reference(model, "model", by)
        adapter = None if adapter is None else self._reference(adapter, "adapter", by)
        if self._is_base(model):
            return self._bare_base if adapter is None else self._composition(adapter, "adapter", by)
        if adapter is not None and adapter != model:
            raise InvalidInput(
                f"the model {model!r} and the adapter {adapter!r} disagree; "
                "name the adapter once, or the base as the model",
                param="adapter",
            )
        return self._composition(model, "model", by)

    def resolve_one(self, name: str, *, param: str = "model", by: Principal | None = None) -> Target:
        """The target of `name` where only one version or the base makes sense; raise InvalidInput for a composition."""
        name = self._reference(name, param, by)
        if is_checkpoint_name(name):
            return self._version(name, param, by)
        if "+" in name or ":" in name:
            raise InvalidInput(
                f"{name[:MAX_NAME_LENGTH]!r} is a composition, which only inference endpoints take; "
                "name one adapter without a weight",
                param=param,
            )
        return self._bare_base if self._is_base(name) else self._version(name, param, by)

    def _composition(self, text: str, param: str, by: Principal | None) -> Target:
        """The target of one reference, or several with weights. Only parts are cached, as weights are endless."""
        if is_checkpoint_name(text) or not {"+", ":"} & set(text) or len(text) > MAX_PARTS * MAX_NAME_LENGTH:
            return self._version(text, param, by)
        try:
            parts = parse_composition(text)
        except InvalidInput as error:
            if error.code == "invalid_name":
                raise NotFound(error.message, code="model_not_found", param=param) from error
            raise InvalidInput(error.message, code=error.code, param=param) from error
        targets = [self._version(str(part.reference), param, by) for part in parts]
        versions = tuple(version for target in targets for version in target.versions)
        if len({version.digest for version in versions}) < len(versions):
            raise InvalidInput(
                f"{text!r} names one version twice, by different references; name it once with the sum of the weights",
                code="invalid_composition",
                param=param,
            )
        composition = [
            WeightedAdapter(target.composition[0].source, part.weight)
            for target, part in zip(targets, parts, strict=True)
        ]
        return Target(self.base, versions, tuple(composition))

    def _reference(self, name: str, param: str, by: Principal | None) -> str:
        """`name`, or the reference that a name in OpenAI's form stands for if it is not a checkpoint's; raise NotFound."""
        if not is_tuned_name(name) or is_checkpoint_name(name):
            return name
        self._notice_changes()
        if self._tuned_names is None:
            self._tuned_names = self._registry.queue.names()
        place = self._tuned_names.get(name)
        if place is None or not _may_use(by, place[0]):
            known = [other for other, (adapter, _) in self._tuned_names.items() if _may_use(by, adapter)]
            raise NotFound(
                f"the model {name[:MAX_NAME_LENGTH]!r} does not exist: {near(name[:MAX_NAME_LENGTH], known)}",
                code="model_not_found",
                param=param,
            )
        return f"{place[0]}@{place[1]}"

    def tuned(self, by: Principal | None = None) -> dict[str, Version]:
        """The versions and checkpoints on the served base that have a name in OpenAI's form, by that name."""
        named = self._registry.queue.named_versions()
        named |= {checkpoint.name: checkpoint.version for checkpoint in self._registry.checkpoints.all()}
        return {
            name: version
            for name, version in named.items()
            if version.base_digest == self.base.digest and _may_use(by, version.adapter)
        }

    def _is_base(self, name: str) -> bool:
        # A Hub id looks like an adapter's name. If there is an adapter of that name, it wins.
        return name == self.base.name or (name == self.base.source and name not in self._registry.adapters())

    def _version(self, reference: str, param: str, by: Principal | None) -> Target:
        if len(reference) > MAX_NAME_LENGTH:
            raise NotFound(
                f"the model {reference[:20]!r}… does not exist: no name is longer than {MAX_NAME_LENGTH} characters",
                code="model_not_found",
                param=param,
            )
        # Before it is looked for, so that the time says nothing either.
        if not is_tuned_name(reference) and not _may_use(by, reference.partition("@")[0]):
            raise self._unknown(reference, param, by)
        self._notice_changes()
        if reference not in self._targets:
            self._targets[reference] = self._look_up(reference, param, by)
        target = self._targets[reference]
        if not all(_may_use(by, version.adapter) for version in target.versions):
            raise self._unknown(reference, param, by)
        return target

    def _unknown(self, reference: str, param: str, by: Principal | None) -> NotFound:
        return NotFound(
            f"the model {reference!r} does not exist: {near(reference, self.names(by))}",
            code="model_not_found",
            param=param,
        )

    def _notice_changes(self) -> None:
        """Drop what was resolved before the latest commit to the registry."""
        changes = self._registry.changes()
        if changes != self._changes:
            self._targets.clear()
            self._adapters = self._tuned_names = None
            self._changes = changes

    def _look_up(self, reference: str, param: str, by: Principal | None) -> Target:
        try:
            if is_checkpoint_name(reference):
                version = self._registry.checkpoints.get(reference).version
            else:
                version = self._registry.resolve(reference)
        except (NotFound, InvalidInput) as error:
            named = reference.partition("@")[0]
            if not is_tuned_name(reference) and ("/" not in reference or named not in self._registry.adapters()):
                raise self._unknown(reference, param, by) from error
            raise NotFound(error.message, code="model_not_found", param=param) from error
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

    def names(self, by: Principal | None = None) -> list[str]:
        """Every model name: the base's and all adapters'."""
        return [self.base.name, *(name for name in self._registry.adapters() if _may_use(by, name))]

    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters on the served base."""
        self._notice_changes()
        if self._adapters is None:
            self._adapters = tuple(version.adapter for version in self.served())
        return self._adapters

    def served(self, by: Principal | None = None) -> list[Version]:
        """The version that each adapter's bare name means now, for the adapters on the served base."""
        return [
            version
            for version in self._registry.latest()
            if version.base_digest == self.base.digest and _may_use(by, version.adapter)
        ]


def _may_use(by: Principal | None, adapter: str) -> bool:
    return by is None or by.may_use(adapter)
