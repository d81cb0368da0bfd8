"""Owns the whole extension surface of Tunery; everything built in registers through it like any third party.

A plugin is a module (or object) with functions marked `@hookimpl`, named by an entry point in the group `tunery`:

    [project.entry-points.tunery]
    dora = "tunery_dora"

Registering must be cheap: a plugin hands over descriptors and names its heavy classes by string, so that listing plugins
never imports torch. A hookimpl may take fewer arguments than its spec; it is called with keywords only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pluggy

from tunery.plugins.events import JobEvent
from tunery.plugins.parameters import TrainingParameters

if TYPE_CHECKING:
    import click

    from tunery.registry import Job, Version

__all__ = [
    "API_VERSION",
    "BaseSource",
    "CheckInfo",
    "Conversation",
    "FormatInfo",
    "GateInfo",
    "Severity",
    "TrainerInfo",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("tunery")
hookimpl = pluggy.HookimplMarker("tunery")

Severity = Literal["error", "warning", "info"]

API_VERSION = 1
"""What a descriptor declares it was written for; a newer major than the host's is refused by name."""


class BaseSource(msgspec.Struct, frozen=True, kw_only=True):
    """A place base models come from.

    `claims(reference)` says cheaply whether this source understands what the user wrote (`smollm2-135m`, a folder, a Hub
    id with `@revision`, a `.gguf` file). `entrypoint` names, as `package.module:function`, a function
    `(reference: str, folder: Path) -> str | None` that fills the empty `folder` with the model as transformers saves it
    (config.json, *.safetensors, tokenizer files) and says where it came from, or raises a TuneryError. The host checks what
    it finds there: pickled weights, remote code and half a model are refused. Sources are tried in order of `priority`, lowest first.
    """

    name: str
    summary: str
    claims: Callable[[str], bool]
    entrypoint: str
    priority: int = 50
    api_version: int = API_VERSION


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A row as every format means it.

    `messages` have `role` and `content`, maybe `tool_calls` (arguments as objects) and `weight` (0: not trained); `tools` are the
    functions on offer; `rejected` are the messages of a worse answer than the one that ends `messages`, and `prompt` says how
    many of `messages` come before that answer (None: all but the last).
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    prompt: int | None = None


class FormatInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A way to write training examples as JSON Lines.

    `sniff(row)` says whether a parsed line looks like this format; `to_conversation(row)` turns it into a list of messages
    (`role`, `content`) whose assistant turns are trained, or into a Conversation where there is more to say, and raises
    InvalidInput saying what is wrong and how to fix it; it is given no key that is null. Functions of a module, unlike lambdas, let
    files be checked by several processes. `keys` are those that it reads: of other columns the check `extra_column` warns.
    """

    name: str
    summary: str
    sniff: Callable[[dict[str, Any]], bool]
    to_conversation: Callable[[dict[str, Any]], list[dict[str, Any]] | Conversation]
    keys: tuple[str, ...] = ()
    api_version: int = API_VERSION


class CheckInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A check of training data, described without importing it.

    `name` is the rule that its findings carry, `severity` what they are where a finding does not say otherwise: an error keeps a
    file from being trained on. `entrypoint` names, as `package.module:Class`, a subclass of `tunery.plugins.data.checks.check.Check`.
    """

    name: str
    summary: str
    severity: Severity
    entrypoint: str
    api_version: int = API_VERSION


class GateInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that trained files must prove before they become a version, described without importing it.

    `code` is what the job fails with when they do not. `entrypoint` names, as `package.module:function`, a function
    `(case: GateCase) -> Verdict` of `tunery.plugins.training.gates`; it is called in a fresh process. Gates are asked in order of
    `priority`, lowest first, and a job fails with the code of the first that failed.
    """

    name: str
    code: str
    summary: str
    entrypoint: str
    priority: int = 100
    api_version: int = API_VERSION


class TrainerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A trainer, described without importing it.

    `entrypoint` names, as `package.module:Class`, a class that follows `tunery.plugins.training.Trainer`; it is imported only in
    the process that trains. `parameters` is a frozen Struct of every parameter with its default (a subclass of
    TrainingParameters): its JSON schema is shown to users and unknown names are refused with near matches.
    """

    name: str
    summary: str
    entrypoint: str
    parameters: type[TrainingParameters]
    methods: tuple[str, ...] = ("supervised",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    api_version: int = API_VERSION


# -- registration: called once at start; `register` checks the descriptor and refuses a name that is taken ----------------


@hookspec
def register_bases(register: Callable[[BaseSource], None]) -> None:
    """Call `register(BaseSource(...))` for every place base models may come from."""


@hookspec
def register_formats(register: Callable[[FormatInfo], None]) -> None:
    """Call `register(FormatInfo(...))` for every format of training rows."""


@hookspec
def register_checks(register: Callable[[CheckInfo], None]) -> None:
    """Call `register(CheckInfo(...))` for every check of training data."""


@hookspec
def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
    """Call `register(TrainerInfo(...))` for every trainer."""


@hookspec
def register_gates(register: Callable[[GateInfo], None]) -> None:
    """Call `register(GateInfo(...))` for every gate that trained files must pass before they are published."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `tunery`; a name that exists is refused. Import heavy modules inside the command."""


# -- observers: called one plugin at a time; what they raise is logged and never breaks the job ------------------------------


@hookspec
def job_event(job: Job, event: JobEvent) -> None:
    """A training job reports progress; `event` is one of the structs in `tunery.plugins.events` (`event.kind` names it)."""


@hookspec
def version_published(version: Version, folder: Path) -> None:
    """A version became visible in the registry; `folder` holds its files until the hook returns."""
