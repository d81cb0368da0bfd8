"""The settings, their defaults and what each is for; and reading them once, from
`TUNERY_HOME/config.toml` and `TUNERY_*` variables.

An option of the command wins over the environment (`TUNERY_SERVE_PORT=8001`), that over the file
(`[serve] port = 8001`), and that over the defaults below. Unknown names are errors, all reported together. Options,
their help and docs/operations.md are made from the fields of these structs.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from tunery.registry.configuration import oidc, webhooks
from tunery.registry.configuration.limits import LimitsSettings
from tunery.registry.configuration.oidc import OidcSettings
from tunery.registry.configuration.webhooks import WebhooksSettings
from tunery.registry.errors import InvalidInput, UnknownName
from tunery.registry.values import about, read_value

__all__ = ["JobsSettings", "LimitsSettings", "ServeSettings", "Settings", "TrainingSettings", "read_settings"]

Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(gt=0, le=1e6)]

# Variables that Tunery reads and that are not settings.
_OTHER_VARIABLES = frozenset(
    {
        "TUNERY_HOME",
        "TUNERY_PLUGINS",
        "TUNERY_ACTOR",
        "TUNERY_DEBUG",
        "TUNERY_TEST_CACHE",
        "TUNERY_SERVER",
        "TUNERY_API_KEY",
    }
)


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
"""Names and values of the variables that Kubernetes sets for a Service.

A value counts too: TUNERY_SERVE_PORT is also a setting.
"""


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `tunery serve` serves; each field is also an option of that command."""

    base: Annotated[str, about("The base model: a name, folder, GGUF file or Hub id.")] = "smollm2-135m"
    quant: Annotated[Literal["nf4", "int8", "none"], about("How the base is quantized: nf4, int8 or none.")] = "nf4"
    dtype: Annotated[Literal["float32", "bfloat16"], about("What is computed in: bfloat16 or float32.")] = "bfloat16"
    device: Annotated[str, about("cpu, cuda, cuda:1 …")] = "auto"
    host: Annotated[str, about("The address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535), about("The port; 0 for any that is free.")] = 8000
    workers: Annotated[
        int, Meta(ge=1, le=64), about("Gateway processes in front of the engine; they share all limits.")
    ] = 1
    auth: Annotated[bool, about("Answer only who has an API key (tunery keys); without, serve only on loopback.")] = (
        True
    )
    admin_port: Annotated[
        int, Meta(ge=0, le=65535), about("A port for /admin/v1 alone, which is then not at the other; 0 for none.")
    ] = 0
    admin_host: Annotated[str, about("The address of that port; that of the other unless given.")] = ""
    allowed_hosts: Annotated[
        tuple[str, ...],
        about(
            "Names that a request's Host header may have besides loopback ones, separated by commas; * is a wildcard. None given: "
            "any name, but only loopback ones where the host is loopback."
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...], about("Origins of web pages that may use this server besides its own, separated by commas.")
    ] = ()
    adapter_budget_mb: Annotated[AtLeastOne, about("Memory for the weights of adapters, in MiB.")] = 1024
    adapter_ram_mb: Annotated[Count, about("Main memory for adapters evicted from that, in MiB.")] = 0
    preload: Annotated[
        tuple[str, ...], about("Adapters to load at the start and keep in memory, separated by commas.")
    ] = ()
    max_batch: Annotated[AtLeastOne, about("Requests that run at once.")] = 32
    max_waiting: Annotated[Count, about("Requests that may wait beyond those that run.")] = 256
    max_waiting_per_tenant: Annotated[
        Count,
        about("Requests that one tenant may have waiting and running; 0 for half of all while others have some too."),
    ] = 0
    tenant_weights: Annotated[
        dict[str, Weight], about("Shares of the engine by tenant, such as acme=2,globex=1; 1 for all others.")
    ] = {}
    context_length: Annotated[Count, about("Tokens of prompt and output; 0 for the base's own limit.")] = 0
    kv_tokens: Annotated[Count, about("Tokens that the KV cache holds; 0 follows max_batch.")] = 0
    token_budget: Annotated[Count, about("Tokens that one step computes; 0 for the engine's choice.")] = 0
    prefix_cache: Annotated[bool, about("Keep the KV cache of prefixes that prompts share.")] = True
    default_max_tokens: Annotated[AtLeastOne, about("Tokens that are generated for a request that sets no limit.")] = (
        1024
    )
    threads: Annotated[Count, about("Threads of the engine; 0 for all usable cores.")] = 0
    drain_delay: Annotated[
        Count, about("Seconds after SIGTERM in which a server that is not ready any more still takes new requests.")
    ] = 5
    drain_seconds: Annotated[AtLeastOne, about("Seconds that running requests may take after that.")] = 30
    read_seconds: Annotated[
        AtLeastOne,
        about("Seconds that a request's head, and its body, may take to arrive, and that a connection may be idle."),
    ] = 30
    write_seconds: Annotated[AtLeastOne, about("Seconds in all that a response may wait for a client to read it.")] = 60
    max_connections: Annotated[AtLeastOne, about("Connections that are served at once.")] = 1024
    hang_unready_seconds: Annotated[
        AtLeastOne, about("Seconds without a heartbeat after which the engine counts as not ready.")
    ] = 10
    hang_restart_seconds: Annotated[
        AtLeastOne, about("Seconds without a heartbeat after which the engine is restarted.")
    ] = 60
    restart_hold_seconds: Annotated[
        Count, about("Seconds that a request which has not begun waits for an engine that is starting.")
    ] = 15
    registry_wait_seconds: Annotated[
        AtLeastOne,
        about(
            "Seconds that a change waits for another process that holds the registry, before it is answered with 503."
        ),
    ] = 5
    metric_tenants: Annotated[
        Count, about("Tenants with metrics of their own, those with the most requests; the rest share one series.")
    ] = 50
    response_days: Annotated[AtLeastOne, about("Days that a response is kept which was to be stored.")] = 30
    access_log: Annotated[bool, about("Write one line of JSON per request to stderr.")] = False
    log_prompts: Annotated[bool, about("Write the bodies of requests to the access log too: what tenants ask.")] = False
    log_format: Annotated[
        Literal["text", "json"], about("What is written to stderr: text for people, or one JSON object a line.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], about("The least severe events of Tunery that are logged.")
    ] = "warning"
    otlp_endpoint: Annotated[
        str, about("Where to send traces, such as http://collector:4318; none given: as OTEL_… variables say.")
    ] = ""
    trace_ratio: Annotated[
        float, Meta(ge=0, le=1), about("The share of requests to trace, among those whose callers do not decide it.")
    ] = 1.0
    tls_cert: Annotated[str, about("A PEM file with the certificate and its chain; requests then come by HTTPS.")] = ""
    tls_key: Annotated[str, about("The PEM file of the certificate's key, not encrypted.")] = ""
    tls_client_ca: Annotated[
        str, about("A PEM file of authorities; only clients with a certificate of one of them are served.")
    ] = ""
    worker: Annotated[bool, about("Also run queued training jobs, in processes of their own.")] = True
    batches: Annotated[bool, about("Also answer the requests of batches, behind all others.")] = True
    batch_slots: Annotated[
        Count, about("Requests of batches that run at once, among those of max_batch; 0 for half of them.")
    ] = 0

    @property
    def background_slots(self) -> int:
        """How many requests of batches may run at once."""
        return min(self.batch_slots or max(1, self.max_batch // 2), self.max_batch)


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `tunery train` trains; each field is also an option of that command."""

    threads: Annotated[Count, about("Threads that compute; 0 for all usable cores.")] = 0


class JobsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How queued jobs run; each field is also an option of `tunery worker`."""

    executor: Annotated[str, about("The plugin that starts the processes that train.")] = "local"
    concurrency: Annotated[AtLeastOne, about("Jobs that a worker runs at once.")] = 1
    per_tenant: Annotated[Count, about("Jobs of one tenant that run at once, on all workers; 0 for no limit.")] = 0
    threads: Annotated[Count, about("Threads that each job computes with; 0 for all usable cores.")] = 0
    memory_gb: Annotated[
        float, Meta(ge=0), about("Gigabytes that the jobs of a worker may use together; 0 for what is free.")
    ] = 0.0
    nice: Annotated[
        int, Meta(ge=0, le=19), about("How far jobs step back from serving for processor time: 0 not at all, 19 most.")
    ] = 10
    tenant: Annotated[str, about("Who owns what is uploaded and submitted without a key.")] = "default"
    models: Annotated[
        dict[str, str],
        about(
            "Names of models that clients ask for, and the local bases that they mean, such as gpt-4o-mini=smollm2-135m."
        ),
    ] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, by section."""

    serve: ServeSettings = ServeSettings()
    training: TrainingSettings = TrainingSettings()
    jobs: JobsSettings = JobsSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    limits: LimitsSettings = LimitsSettings()
    oidc: OidcSettings = OidcSettings()


def read_settings(
    home: Path, *, environ: Mapping[str, str] = os.environ, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Settings:
    """Read all settings; raise InvalidInput with every problem at once.

    `overrides` is {section: {name: value}}; None is unset.
    """
    problems: list[str] = []
    tree: dict[str, dict[str, Any]] = {field.name: {} for field in msgspec.structs.fields(Settings)}
    _merge(tree, _from_file(home / "config.toml", problems), "config.toml", problems)
    _merge(tree, _from_environment(environ, problems), "the environment", problems)
    _merge(tree, overrides or {}, "the command", problems)
    sections = {
        field.name: _section(field.type, field.name, tree[field.name], problems)
        for field in msgspec.structs.fields(Settings)
    }
    problems += webhooks.problems(sections["webhooks"])
    problems += oidc.problems(sections["oidc"])
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
    values: dict[str, dict[str, str]] = {}
    sections = {field.name for field in msgspec.structs.fields(Settings)}
    for name, value in environ.items():
        if not name.startswith("TUNERY_") or name in _OTHER_VARIABLES or _is_service_link(name, value):
            continue
        section, _, key = name.removeprefix("TUNERY_").lower().partition("_")
        if section in sections:
            values.setdefault(section, {})[key] = value
        else:
            problems.append(
                f"{name}: no such variable; settings are TUNERY_<section>_<name>, sections: {sorted(sections)}"
            )
    return values


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set a variable for a Service called tunery, or tunery-…, as it does in
    every pod of the namespace."""
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
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    valid: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            problems.append(str(UnknownName("setting", f"{section}.{name}", (f"{section}.{other}" for other in types))))
            continue
        try:
            item = _item(types[name])
            if item is not None:
                valid[name] = _sections(item, f"{section}.{name}", value, problems)
            else:
                valid[name] = read_value(f"{section}.{name}", value, types[name])
        except InvalidInput as error:
            problems.append(error.message)
    return kind(**valid)


def _item(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a setting is a list of; None for every other setting."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    item = next(iter(get_args(plain)), None) if get_origin(plain) is tuple else None
    return item if isinstance(item, type) and issubclass(item, msgspec.Struct) else None


def _sections(item: type[msgspec.Struct], name: str, value: Any, problems: list[str]) -> tuple[Any, ...]:
    """A list of tables, `[[section.name]]` in the file and JSON elsewhere. Its values may be secret, so none is shown."""
    try:
        tables = msgspec.json.decode(value) if isinstance(value, str) else value
        listed = msgspec.convert(tables, list[dict[str, Any]])
    except (msgspec.DecodeError, msgspec.ValidationError):
        problems.append(f"{name} is a list of tables, written [[{name}]] or as JSON")
        return ()
    return tuple(_section(item, f"{name}[{number}]", table, problems) for number, table in enumerate(listed))
