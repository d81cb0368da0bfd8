"""From the body of `POST /v1/fine_tuning/jobs` to a request for the queue; everything that can be refused is refused
here."""

from __future__ import annotations

import secrets
from importlib.util import find_spec
from typing import Any

import msgspec

from tunery.gateway.api.schemas.fine_tuning import Hyperparameters, JobCreate, TuneryOptions
from tunery.gateway.jobs.model_names import adapter_name, is_checkpoint_name, is_tuned_name, tuned_name
from tunery.gateway.tenancy.principal import Principal
from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.hookspecs import TrainerInfo
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import AUTO, read_parameters
from tunery.registry import Base, Version
from tunery.registry.errors import InvalidInput, NotFound, UnknownName
from tunery.registry.names import check_adapter, check_alias
from tunery.registry.records import DataFile, JobRequest
from tunery.registry.registry import Registry
from tunery.registry.settings import JobsSettings

__all__ = ["Planned", "plan"]

METHODS = {"supervised": "lora", "dpo": "dpo"}
"""The trainer of each of OpenAI's methods, where none is named."""


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
    method, hyperparameters = _method(body)
    trainer = _trainer(extra, method, plugins)
    base, parent = _base(body, extra, principal, served=served, registry=registry, settings=settings)
    seed = body.seed if body.seed is not None else secrets.randbelow(2**31)
    parameters = _parameters(hyperparameters, extra, trainer, seed)
    adapter = _adapter(body, extra, base, principal)
    if extra.alias is not None:
        _named("tunery.alias", check_alias, extra.alias)
    training = _file(body.training_file, "training_file", registry, principal.tenant)
    validation = _file(body.validation_file, "validation_file", registry, principal.tenant)
    for rule in extra.allow or ():
        if rule not in plugins.checks():
            raise UnknownName("rule", rule, plugins.checks(), param="tunery.allow")
    request = JobRequest(
        adapter=adapter,
        trainer=trainer.name,
        base=base.digest,
        data=(training.id,) if training else (),
        validation=validation.id if validation else None,
        parent=parent.name if parent else None,
        alias=extra.alias,
        allow=tuple(extra.allow or ()),
        force=bool(extra.force),
        parameters=parameters,
        learning_rate_multiplier=_number(hyperparameters.learning_rate_multiplier, 1.0),
        actor=principal.actor,
        model_name=tuned_name(body.model, tenant=principal.tenant, suffix=body.suffix, job_id=job_id),
    )
    details = {
        "model": body.model,
        "base": base.name,
        "suffix": body.suffix,
        "seed": seed,
        "metadata": body.metadata,
        "integrations": integrations,
        "method": method,
        "hyperparameters": msgspec.to_builtins(hyperparameters),
    }
    return Planned(request=request, details=details, priority=extra.priority or 0)


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


def _method(body: JobCreate) -> tuple[str, Hyperparameters]:
    """The method's name and its hyperparameters, from either form."""
    older = body.hyperparameters or Hyperparameters()
    if body.method is None:
        return "supervised", older
    kind = body.method.type
    if kind not in METHODS:
        raise InvalidInput(
            f"the method {kind[:40]!r} is not supported; known: {', '.join(METHODS)}",
            code="unsupported_method",
            param="method.type",
        )
    options = body.method.dpo if kind == "dpo" else body.method.supervised
    if options is not None and options.hyperparameters is not None:
        return kind, options.hyperparameters
    return kind, older


def _trainer(extra: TuneryOptions, method: str, plugins: Plugins) -> TrainerInfo:
    name = extra.trainer or METHODS[method]
    if name not in plugins.trainers():
        raise UnknownName("trainer", name, plugins.trainers(), param="tunery.trainer")
    return plugins.trainer(name)


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


def _parent(reference: str, registry: Registry, principal: Principal) -> Version:
    adapter = reference.partition("@")[0]
    if not principal.may_use(adapter):
        raise InvalidInput(f"{reference[:200]} does not exist", code="model_not_found", param="tunery.from")
    version: Version = _named("tunery.from", registry.resolve, reference)
    return version


def _continued(model: str, registry: Registry, principal: Principal) -> Version | None:
    """The version that `model` names, None where it is a base's name."""
    if is_checkpoint_name(model):
        raise InvalidInput(
            f"{model[:200]} is a checkpoint; jobs go on from versions: name the job's own model, or a base",
            code="model_not_available",
            param="model",
        )
    if is_tuned_name(model):
        place = registry.queue.names().get(model)
        if place is None or not principal.may_use(place[0]):
            raise _no_model(model)
        return registry.version(*place)
    adapter = model.partition("@")[0]
    if "/" not in model or not principal.may_use(adapter) or adapter not in registry.adapters():
        return None
    return registry.resolve(model)


def _no_model(model: str) -> InvalidInput:
    return InvalidInput(
        f"Model {model[:80]} is not available for fine-tuning or does not exist.",
        code="model_not_available",
        param="model",
    )


def _parameters(
    hyperparameters: Hyperparameters, extra: TuneryOptions, trainer: TrainerInfo, seed: int
) -> dict[str, Any]:
    """The trainer's parameters: OpenAI's words, and then its own, which win."""
    given: dict[str, Any] = {"seed": seed}
    if hyperparameters.n_epochs not in (None, AUTO):
        given["epochs"] = hyperparameters.n_epochs
    if hyperparameters.batch_size not in (None, AUTO):
        given["batch_size"] = hyperparameters.batch_size
    if hyperparameters.beta not in (None, AUTO):
        given["beta"] = hyperparameters.beta
    given |= extra.parameters or {}
    try:
        read_parameters(trainer.parameters, given)
    except InvalidInput as error:
        param = "tunery.parameters" if extra.parameters else "hyperparameters"
        raise InvalidInput(error.message, code=error.code, param=param) from error
    return given


def _number(value: float | str | None, default: float) -> float:
    """A number, or the default for "auto" and null."""
    return float(value) if isinstance(value, int | float) else default


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


def _file(file_id: str | None, param: str, registry: Registry, tenant: str) -> DataFile | None:
    """The file, which must be rows to train on and not known to be wrong."""
    if file_id is None:
        return None
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


def _named(param: str, read: Any, value: str) -> Any:
    """`read(value)`, whose errors name the field."""
    try:
        return read(value)
    except (InvalidInput, NotFound) as error:
        raise InvalidInput(error.message, code=error.code, param=param) from error
