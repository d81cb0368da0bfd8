"""From the body of `POST /v1/fine_tuning/jobs` to a request for the queue; everything that can be refused is refused
here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import msgspec

from tunery.gateway.api.jobs.training import plan_training
from tunery.gateway.api.schemas.fine_tuning import JobCreate, TuneryOptions
from tunery.gateway.jobs.model_names import adapter_name, is_checkpoint_name, is_tuned_name, tuned_name
from tunery.gateway.tenancy.principal import Principal
from tunery.plugins.data.read.formats import BUILT_IN, OPENAI_PREFERENCE, PREFERENCE
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.hookspecs import TrainerInfo
from tunery.plugins.manager import Plugins
from tunery.registry import Base, Version
from tunery.registry.configuration.settings import JobsSettings
from tunery.registry.errors import InvalidInput, NotFound, UnknownName, near
from tunery.registry.jobs.queue import BODY_DIGEST
from tunery.registry.names import check_adapter, check_alias, tenant_of
from tunery.registry.records import DataFile, JobRequest
from tunery.registry.registry import Registry

__all__ = ["Planned", "plan"]

PAIRS = frozenset({PREFERENCE.name, OPENAI_PREFERENCE.name})
"""The built-in formats whose rows are preference pairs."""
LEAKAGE = "leakage"
"""The rule of the data check about rows that are trained on and held out."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A job that can be queued; `details` are kept for whoever asks for it."""

    request: JobRequest
    details: dict[str, Any]
    priority: int


def plan(
    body: JobCreate,
    *,
    principal: Principal,
    job_id: str,
    served: Base,
    registry: Registry,
    plugins: Plugins,
    settings: JobsSettings,
) -> Planned:
    """Check a body against what there is for who asks; raise InvalidInput or NotFound with the field as `param`."""
    extra = body.tunery or TuneryOptions()
    integrations = _integrations(body, plugins)
    training = plan_training(body, plugins)
    base, parent = _base(body, extra, principal, served=served, registry=registry, settings=settings)
    adapter = _adapter(body, extra, base, principal)
    if extra.alias is not None:
        _named("tunery.alias", check_alias, extra.alias)
    for rule in extra.allow or ():
        if rule not in plugins.checks():
            raise UnknownName("rule", rule, plugins.checks(), param="tunery.allow")
    rows = _file(body.training_file, "training_file", registry, principal.tenant)
    held_out = None
    if body.validation_file is not None:
        held_out = _file(body.validation_file, "validation_file", registry, principal.tenant)
    _check_rows(rows, held_out, training.trainer, registry, allow=extra.allow or ())
    request = JobRequest(
        adapter=adapter,
        trainer=training.trainer.name,
        base=base.digest,
        data=(rows.id,),
        validation=held_out.id if held_out else None,
        parent=parent.name if parent else None,
        alias=extra.alias,
        allow=tuple(extra.allow or ()),
        force=bool(extra.force),
        parameters=training.parameters,
        learning_rate_multiplier=training.learning_rate_multiplier,
        actor=principal.actor,
        model_name=tuned_name(body.model, tenant=principal.tenant, suffix=body.suffix, job_id=job_id),
    )
    details = {
        "model": body.model,
        "base": base.name,
        "suffix": body.suffix,
        "seed": training.seed,
        "metadata": body.metadata,
        "integrations": integrations,
        "method": training.method,
        "hyperparameters": msgspec.to_builtins(training.hyperparameters),
        BODY_DIGEST: _body_digest(body),
    }
    return Planned(request=request, details=details, priority=extra.priority or 0)


def _body_digest(body: JobCreate) -> str:
    """The sha256 of what a body asks for, however it is written."""
    return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()


def _integrations(body: JobCreate, plugins: Plugins) -> list[dict[str, Any]]:
    """The trackers to log to, with their options."""
    kept = []
    for integration in body.integrations or ():
        name = str(integration.get("type"))[:40]
        try:
            tracker = plugins.tracker(name)
        except UnknownName as error:
            raise InvalidInput(error.message, code="unsupported_integration", param="integrations") from error
        if find_spec(tracker.package) is None:
            raise InvalidInput(
                f"the integration {name!r} needs the package {tracker.package}, which is not installed here; "
                "leave integrations out, a job's metrics are in its events",
                code="unsupported_integration",
                param="integrations",
            )
        kept.append({"type": name, name: load_entrypoint(tracker.read)(integration.get(name))})
    return kept


def _base(
    body: JobCreate,
    extra: TuneryOptions,
    principal: Principal,
    *,
    served: Base,
    registry: Registry,
    settings: JobsSettings,
) -> tuple[Base, Version | None]:
    """The base to train on, and the version to continue from."""
    continued = _continued(body.model, registry, principal)
    if continued is not None:
        if extra.parent is not None:
            raise InvalidInput("model names a version to continue from, and so does from", param="tunery.from")
        return registry.base(continued.base_digest), continued
    parent = None if extra.parent is None else _parent(extra.parent, registry, principal)
    name = settings.models.get(body.model, body.model)
    if name in (served.name, served.source, served.digest):
        return served, parent
    try:
        return registry.base(name), parent
    except NotFound as error:
        raise _no_model(body.model) from error


def _continued(model: str, registry: Registry, principal: Principal) -> Version | None:
    """The version that `model` names, None where it is a base's name."""
    if is_tuned_name(model):
        _refuse_checkpoint(model, code="model_not_available", param="model")
        place = registry.queue.names().get(model)
        if place is None or not principal.may_continue(place[0]):
            raise _no_model(model, _why_not(principal, place[0] if place else ""))
        return registry.version(*place)
    adapter = model.partition("@")[0]
    if principal.is_shared(adapter) and not principal.may_continue(adapter):
        raise _no_model(model, _why_not(principal, adapter))
    if "/" not in model or not principal.may_continue(adapter) or adapter not in registry.adapters():
        return None
    try:
        return registry.resolve(model)
    except (InvalidInput, NotFound) as error:
        raise _no_model(model, error.message) from error


def _parent(name: str, registry: Registry, principal: Principal) -> Version:
    """The version that `tunery.from` names."""
    if is_tuned_name(name):
        _refuse_checkpoint(name, code="not_found", param="tunery.from")
        names = {known: place for known, place in registry.queue.names().items() if principal.may_continue(place[0])}
        if name not in names:
            shown = name[:200]
            raise InvalidInput(
                f"the version {shown!r} does not exist: {near(shown, names)}", code="not_found", param="tunery.from"
            )
        return registry.version(*names[name])
    adapter = name.partition("@")[0]
    if not principal.may_continue(adapter):
        why = _why_not(principal, adapter) or f"{name[:200]} does not exist"
        raise InvalidInput(why, code="model_not_found", param="tunery.from")
    version: Version = _named("tunery.from", registry.resolve, name)
    return version


def _why_not(principal: Principal, adapter: str) -> str:
    """Why nobody may continue from an adapter that they may ask; empty where they may not even know of it."""
    if not principal.is_shared(adapter):
        return ""
    return f"{adapter} is shared for inference; only {tenant_of(adapter)} trains on top of it."


def _refuse_checkpoint(name: str, *, code: str, param: str) -> None:
    if is_checkpoint_name(name):
        raise InvalidInput(
            f"{name[:200]} is a checkpoint; jobs go on from versions: name the job's own model, or a base",
            code=code,
            param=param,
        )


def _no_model(model: str, why: str = "") -> InvalidInput:
    return InvalidInput(
        f"Model {model[:80]} is not available for fine-tuning or does not exist." + (f" {why}" if why else ""),
        code="model_not_available",
        param="model",
    )


def _adapter(body: JobCreate, extra: TuneryOptions, base: Base, principal: Principal) -> str:
    param, adapter = "suffix", adapter_name(principal.tenant, suffix=body.suffix, base=base.name)
    if extra.adapter is not None:
        param, adapter = "tunery.adapter", _named("tunery.adapter", check_adapter, extra.adapter)
    if not principal.may_make(adapter):
        raise InvalidInput(
            f"the API key may not train {adapter}; it may train {', '.join(principal.adapters or ())}",
            code="adapter_not_allowed",
            param=param,
        )
    return adapter


def _file(file_id: str, param: str, registry: Registry, tenant: str) -> DataFile:
    """The file, which must be rows to train on and not known to be wrong."""
    try:
        file = registry.data_files.get(file_id, tenant=tenant)
    except NotFound as error:
        raise InvalidInput(f"invalid {param}: {file_id[:80]}", code="file_not_found", param=param) from error
    if file.purpose != "fine-tune":
        raise InvalidInput(
            f"{file_id} was uploaded for {file.purpose!r}; upload it with the purpose 'fine-tune'",
            code="invalid_file_purpose",
            param=param,
        )
    if file.status == "error":
        raise InvalidInput(f"{file_id} cannot be trained on: {file.details}", code=f"invalid_{param}", param=param)
    return file


def _check_rows(
    rows: DataFile, held_out: DataFile | None, trainer: TrainerInfo, registry: Registry, *, allow: Sequence[str]
) -> None:
    """Refuse rows that the trainer does not learn from, as far as the check of their file knows, and rows that are both
    trained on and held out."""
    for file, param in ((rows, "training_file"), (held_out, "validation_file")):
        pairs = None if file is None else _has_pairs(registry.data_files.findings(file.id))
        if file is None or pairs in (None, trainer.openai_method == "dpo"):
            continue
        has, wants = ("preference pairs", "single answers") if pairs else ("single answers", "preference pairs")
        other = "dpo" if pairs else "supervised"
        raise InvalidInput(
            f"{file.id} has {has}, and the trainer {trainer.name!r} learns from {wants}; upload such rows, or train "
            f"with the method {other!r}",
            code=f"invalid_{param}",
            param=param,
        )
    if held_out is not None and held_out.sha256 == rows.sha256 and LEAKAGE not in allow:
        raise InvalidInput(
            f"{held_out.id} has the rows of the training file, and what is trained on measures nothing; name another "
            "file, or leave validation_file out, and a share of the rows is held out",
            code="invalid_validation_file",
            param="validation_file",
        )


def _has_pairs(findings: dict[str, Any] | None) -> bool | None:
    """Whether a checked file begins with preference pairs; None where it is not checked or its format is a plugin's."""
    files = (findings or {}).get("statistics", {}).get("files") or [{}]
    name = files[0].get("format")
    return name in PAIRS if name in {info.name for info in BUILT_IN} else None


def _named(param: str, read: Any, value: str) -> Any:
    """`read(value)`, whose errors name the field."""
    try:
        return read(value)
    except (InvalidInput, NotFound) as error:
        raise InvalidInput(error.message, code=error.code, param=param) from error
