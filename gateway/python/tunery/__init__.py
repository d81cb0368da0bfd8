"""Train, version and serve LoRA fine-tunes of one quantized base model.

From a file of examples to an endpoint that answers with it:

    >>> import openai, tunery
    >>> report = tunery.check_data("rows.jsonl", base="smollm2-135m")
    >>> report.count("error")
    0
    >>> version = tunery.train(
    ...     "rows.jsonl",
    ...     name="acme/tone",
    ...     base="smollm2-135m",
    ...     parameters={"max_steps": 2},
    ...     force=True,  # two steps improve nothing: publish it although it fails that gate
    ... )
    >>> version.name
    'acme/tone@1'
    >>> with tunery.open_registry() as registry:
    ...     move = registry.move_alias("acme/tone", "production", 1, actor=tunery.current_actor())
    ...     registry.resolve("acme/tone").aliases
    ('production',)
    >>> with tunery.serve(tunery.ServeSettings(base="smollm2-135m", port=0)) as server:
    ...     client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key)
    ...     [model.id for model in client.models.list()]
    ['smollm2-135m', 'acme/tone']

Everything is kept under `TUNERY_HOME` (default `~/.tunery`); each function takes another folder as `home`. All errors
are `TuneryError`s whose message says what is wrong, where, and what to do next.

Names are imported when they are first used: `import tunery` itself brings in neither torch nor a database driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery.gateway.python.checking import check_data
    from tunery.gateway.python.home import current_actor, open_registry
    from tunery.gateway.python.serving import Server, serve
    from tunery.gateway.python.training import resume, train
    from tunery.plugins.data.checks.report import DataReport, Finding
    from tunery.registry.configuration.settings import ServeSettings
    from tunery.registry.errors import (
        ArtifactRefused,
        Conflict,
        InvalidData,
        InvalidInput,
        JobCancelled,
        JobPaused,
        NotFound,
        Overloaded,
        StorageFailed,
        TrainingFailed,
        TuneryError,
        Unavailable,
        UnknownName,
    )
    from tunery.registry.records import AliasMove, Base, Job, Version
    from tunery.registry.registry import Registry

__all__ = [
    "AliasMove",
    "ArtifactRefused",
    "Base",
    "Conflict",
    "DataReport",
    "Finding",
    "InvalidData",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobPaused",
    "NotFound",
    "Overloaded",
    "Registry",
    "ServeSettings",
    "Server",
    "StorageFailed",
    "TrainingFailed",
    "TuneryError",
    "Unavailable",
    "UnknownName",
    "Version",
    "check_data",
    "current_actor",
    "open_registry",
    "resume",
    "serve",
    "train",
]

_ERRORS = "registry.errors"
_MODULES = {
    "AliasMove": "registry.records",
    "ArtifactRefused": _ERRORS,
    "Base": "registry.records",
    "Conflict": _ERRORS,
    "DataReport": "plugins.data.checks.report",
    "Finding": "plugins.data.checks.report",
    "InvalidData": _ERRORS,
    "InvalidInput": _ERRORS,
    "Job": "registry.records",
    "JobCancelled": _ERRORS,
    "JobPaused": _ERRORS,
    "NotFound": _ERRORS,
    "Overloaded": _ERRORS,
    "Registry": "registry.registry",
    "ServeSettings": "registry.configuration.settings",
    "Server": "gateway.python.serving",
    "StorageFailed": _ERRORS,
    "TrainingFailed": _ERRORS,
    "TuneryError": _ERRORS,
    "Unavailable": _ERRORS,
    "UnknownName": _ERRORS,
    "Version": "registry.records",
    "check_data": "gateway.python.checking",
    "current_actor": "gateway.python.home",
    "open_registry": "gateway.python.home",
    "resume": "gateway.python.training",
    "serve": "gateway.python.serving",
    "train": "gateway.python.training",
}
"""Each public name's module, below `tunery`."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tunery' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"tunery.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
