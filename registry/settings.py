"""Owns the one configuration tree: `TUNERY_HOME/config.toml` and `TUNERY_*` variables, read once. Unknown keys are errors.

Precedence: what a command was given, then the environment (`TUNERY_SERVE_PORT=8001`), then the file (`[serve] port = 8001`), then
the defaults below.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.values import read_value

__all__ = ["ServeSettings", "Settings", "TrainingSettings", "read_settings"]

Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(gt=0, le=1e6)]

# Variables that mean something to Tunery without being settings.
_OTHER_VARIABLES = frozenset({"TUNERY_HOME", "TUNERY_PLUGINS", "TUNERY_ACTOR", "TUNERY_DEBUG", "TUNERY_TEST_CACHE"})


_IP, _URL = r"[0-9a-fA-F.:]+", r"(?:tcp|udp|sctp)://\S+:\d+"
_SERVICE_LINKS = tuple(
    (re.compile(rf"TUNERY(?:_[A-Z0-9_]+)?_{name}"), re.compile(value))
    for name, value in (
        ("SERVICE_HOST", _IP),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", r"\d+"),
        ("PORT", _URL),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)", _URL),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PROTO", "tcp|udp|sctp"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PORT", r"\d+"),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_ADDR", _IP),
    )
)
"""Names and values of the variables that Kubernetes sets for a Service. A value counts too: TUNERY_SERVE_PORT is also a setting."""


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `tunery serve` serves.

    `adapter_budget_mb` is the memory for adapters' weights, `adapter_ram_mb` the main memory for those that were evicted from it;
    `kv_tokens` the tokens the cache holds (0: follows `max_batch`), `prefix_cache` whether it keeps what prompts have in common,
    `token_budget` the tokens of one step (0: the engine's choice); `context_length` 0 is the base's own; `max_waiting` requests
    may wait beyond the `max_batch` that run, and one tenant may have `max_waiting_per_tenant` in hand (0: half of all while
    others ask too); `tenant_weights` are shares of the engine, 1 for whom they do not name; `preload` names the adapters that
    are in memory from the start and stay there; `allowed_hosts` are the names that requests may have in their Host header besides
    loopback ones (none given: any name, but only loopback ones where `host` is loopback), `allowed_origins` the pages that may use
    this server besides its own; `default_max_tokens` is for requests that name none; `drain_seconds` is how
    long running requests may take after SIGTERM; `read_seconds` is how long a request's head, and its body, may take to come and
    a connection may be idle, `write_seconds` how long in all an answer may wait for a client that does not read it, and
    `max_connections` how many connections are served at once; an engine that has not responded for `hang_unready_seconds`
    counts as not ready, after `hang_restart_seconds` it is started again, and requests that have not begun wait
    `restart_hold_seconds` for an engine.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    base: str = "smollm2-135m"
    quant: Literal["nf4", "int8", "none"] = "nf4"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    adapter_budget_mb: AtLeastOne = 1024
    adapter_ram_mb: Count = 0
    preload: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_batch: AtLeastOne = 32
    max_waiting: Count = 256
    max_waiting_per_tenant: Count = 0
    tenant_weights: dict[str, Weight] = {}
    context_length: Count = 0
    kv_tokens: Count = 0
    token_budget: Count = 0
    prefix_cache: bool = True
    default_max_tokens: AtLeastOne = 1024
    drain_seconds: AtLeastOne = 30
    read_seconds: AtLeastOne = 30
    write_seconds: AtLeastOne = 60
    max_connections: AtLeastOne = 1024
    hang_unready_seconds: AtLeastOne = 10
    hang_restart_seconds: AtLeastOne = 60
    restart_hold_seconds: Count = 15
    threads: Count = 0
    access_log: bool = False


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `tunery train` trains: `threads` that compute, 0 for all usable cores."""

    threads: Count = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole tree."""

    serve: ServeSettings = ServeSettings()
    training: TrainingSettings = TrainingSettings()


def read_settings(
    home: Path, *, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Settings:
    """Read the tree; raise InvalidInput with every problem at once. `overrides` is {section: {name: value}}; None is unset."""
    problems: list[str] = []
    tree: dict[str, dict[str, Any]] = {field.name: {} for field in msgspec.structs.fields(Settings)}
    _merge(tree, _from_file(home / "config.toml", problems), "config.toml", problems)
    _merge(tree, _from_environment(environ, problems), "the environment", problems)
    _merge(tree, overrides or {}, "the command", problems)
    sections = {
        field.name: _section(field.type, field.name, tree[field.name], problems)
        for field in msgspec.structs.fields(Settings)
    }
    if problems:
        raise InvalidInput("the configuration has problems:\n" + "\n".join(problems), code="invalid_settings")
    return Settings(**sections)


def _from_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return {}


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    sections = {field.name for field in msgspec.structs.fields(Settings)}
    for name, value in environ.items():
        if not name.startswith("TUNERY_") or name in _OTHER_VARIABLES or _is_service_link(name, value):
            continue
        section, _, key = name.removeprefix("TUNERY_").lower().partition("_")
        if section in sections:
            found.setdefault(section, {})[key] = value
        else:
            problems.append(
                f"{name}: no such variable; settings are TUNERY_<section>_<name>, sections: {sorted(sections)}"
            )
    return found


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set a variable for a Service called tunery, or tunery-…, as it does in every pod of the namespace."""
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_LINKS)


def _merge(tree: dict[str, dict[str, Any]], more: Mapping[str, Any], source: str, problems: list[str]) -> None:
    for section, values in more.items():
        if section not in tree:
            problems.append(f"{source}: {UnknownName('section', section, tree)}")
        elif not isinstance(values, Mapping):
            problems.append(f"{source}: {section} is a section: write [{section}] and its settings under it")
        else:
            tree[section].update({name: value for name, value in values.items() if value is not None})


def _section(kind: Any, section: str, values: Mapping[str, Any], problems: list[str]) -> Any:
    known = {field.name: field.type for field in msgspec.structs.fields(kind)}
    good: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(str(UnknownName("setting", f"{section}.{name}", (f"{section}.{other}" for other in known))))
            continue
        try:
            good[name] = read_value(f"{section}.{name}", value, known[name])
        except InvalidInput as error:
            problems.append(error.message)
    return kind(**good)
