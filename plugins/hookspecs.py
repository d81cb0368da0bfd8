"""The whole extension surface of Tunery. Everything built in registers through it like any third party.

A plugin is a module (or object) with functions marked `@hookimpl`, named by an entry point in the group `tunery`:

    [project.entry-points.tunery]
    dora = "tunery_dora"

Registering must be cheap: a plugin registers descriptors that name its heavy classes by string, so that listing plugins
never imports torch. A hookimpl may take fewer arguments than its spec; it is called with keyword arguments only.
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
    "ExecutorInfo",
    "FormatInfo",
    "GateInfo",
    "Severity",
    "TrackerInfo",
    "TrainerInfo",
    "hookimpl",
    "hookspec",
]

hookspec = pluggy.HookspecMarker("tunery")
hookimpl = pluggy.HookimplMarker("tunery")

Severity = Literal["error", "warning", "info"]

API_VERSION = 1
"""The version of this interface. A descriptor that was written for a newer one is refused."""


class BaseSource(msgspec.Struct, frozen=True, kw_only=True):
    """A source of base models, described without importing it.

    `claims(reference)` decides cheaply whether this source understands what the user wrote (`smollm2-135m`, a folder, a
    Hub id with `@revision`, a `.gguf` file). `entrypoint` names, as `package.module:function`, a function `(reference:
    str, folder: Path) -> str | None` that fills the empty `folder` with the model as transformers saves it
    (config.json, *.safetensors, tokenizer files) and returns a note on where it came from, or raises a TuneryError. The
    host checks the result: pickled weights, remote code and incomplete models are refused. Sources are tried in order
    of `priority`, lowest first.
    """

    name: str
    summary: str
    claims: Callable[[str], bool]
    entrypoint: str
    priority: int = 50
    api_version: int = API_VERSION


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What a row means, whatever its format.

    `messages` have `role` and `content`, and may have `tool_calls` (arguments as objects) and `weight` (0: not
    trained). `tools` are the functions on offer. In a preference row `rejected` are the messages of the rejected
    answer, and `prompt` is the number of `messages` before the chosen one (None: all but the last).
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    rejected: list[dict[str, Any]] | None = None
    prompt: int | None = None


class FormatInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A format of training rows.

    `sniff(row)` decides whether a row looks like this format. `to_conversation(row)` returns its messages (`role`,
    `content`), whose assistant turns are trained, or a Conversation, and raises InvalidInput that says what is wrong
    and how to fix it. Null values are removed before both. Use functions of a module, since lambdas keep files from
    being checked by several processes. `keys` are the columns that the format reads; the check `extra_column` warns
    about others.
    """

    name: str
    summary: str
    sniff: Callable[[dict[str, Any]], bool]
    to_conversation: Callable[[dict[str, Any]], list[dict[str, Any]] | Conversation]
    keys: tuple[str, ...] = ()
    api_version: int = API_VERSION


class CheckInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A check of training data, described without importing it.

    `name` is the rule shown with its findings; `severity` is theirs unless a fault overrides it. An error keeps a file
    from being trained on. `entrypoint` names, as `package.module:Class`, a subclass of
    `tunery.plugins.data.checks.check.Check`.
    """

    name: str
    summary: str
    severity: Severity
    entrypoint: str
    api_version: int = API_VERSION


class GateInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A test that trained files must pass before they become a version, described without importing it.

    `code` is the error code of the job where they fail. `entrypoint` names, as `package.module:function`, a function
    `(case: GateCase) -> Verdict` of `tunery.plugins.training.gates`; it is called in a fresh process. Gates run in
    order of `priority`, lowest first, and a job fails with the code of the first that fails.
    """

    name: str
    code: str
    summary: str
    entrypoint: str
    priority: int = 100
    api_version: int = API_VERSION


class TrainerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A trainer, described without importing it.

    `entrypoint` names, as `package.module:Class`, a class that follows `tunery.plugins.training.Trainer`; it is
    imported only in the process that trains. `parameters` is a subclass of TrainingParameters with every parameter and
    its default: its JSON schema is shown to users, and unknown names are refused with near matches.
    """

    name: str
    summary: str
    entrypoint: str
    parameters: type[TrainingParameters]
    methods: tuple[str, ...] = ("supervised",)
    devices: tuple[str, ...] = ("cpu", "cuda")
    api_version: int = API_VERSION

    @property
    def learns_from_pairs(self) -> bool:
        """Whether its rows are preference pairs."""
        return "preference" in self.methods

    @property
    def openai_method(self) -> Literal["supervised", "dpo"]:
        """The method that it belongs to in OpenAI's words."""
        return "dpo" if self.learns_from_pairs else "supervised"


class ExecutorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where the processes of queued jobs run, described without importing it.

    `entrypoint` names, as `package.module:Class`, a class that follows `tunery.plugins.executors.executor.Executor`; a
    worker makes one instance of it.
    """

    name: str
    summary: str
    entrypoint: str
    api_version: int = API_VERSION


class TrackerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A system that the events of queued jobs can be logged to, described without importing it.

    A job names it in `integrations`, as `{"type": name, name: {options}}`; it is refused unless the Python package
    `package` is installed. `read` names, as `package.module:function`, a function `(options: object) -> dict` that
    checks the options, or raises InvalidInput; `entrypoint` a function `(job: Job, options: dict) -> EventSink`, called
    in the process that trains. An exception in either is logged; the job goes on without it.
    """

    name: str
    summary: str
    package: str
    entrypoint: str
    read: str
    api_version: int = API_VERSION


# -- registration: called once at start; `register` checks the descriptor and refuses a name that is taken -------------


@hookspec
def register_bases(register: Callable[[BaseSource], None]) -> None:
    """Call `register(BaseSource(...))` for every source of base models."""


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
def register_executors(register: Callable[[ExecutorInfo], None]) -> None:
    """Call `register(ExecutorInfo(...))` for every way to run queued jobs."""


@hookspec
def register_trackers(register: Callable[[TrackerInfo], None]) -> None:
    """Call `register(TrackerInfo(...))` for every system that jobs can be logged to."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to `tunery`; a name that exists is refused. Import heavy modules inside the command."""


# -- observers: called one plugin at a time; what they raise is logged and never breaks the job ------------------------


@hookspec
def job_event(job: Job, event: JobEvent) -> None:
    """A training job reports progress; `event` is one of the structs in `tunery.plugins.events` (`event.kind` names
    it)."""


@hookspec
def version_published(version: Version, folder: Path) -> None:
    """A version became visible in the registry; `folder` holds its files until the hook returns."""
