"""Owns finding plugins and calling them; the only module that touches pluggy, so that domain code makes typed calls.

Entry points of the group `tunery` are loaded one by one: a broken plugin is reported by name and the rest load. Built-in
plugins are entry points like any other, loaded first, then the others by package and name, so that who keeps a name does not
depend on the order of a folder. `TUNERY_PLUGINS`, a list of names separated by commas, allows only those beyond the built-in
ones (empty: none); a listed name that is not installed is reported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import pluggy

from tunery.plugins import hookspecs
from tunery.plugins.events import JobEvent
from tunery.plugins.hookspecs import API_VERSION, BaseSource, CheckInfo, FormatInfo, GateInfo, TrainerInfo
from tunery.registry.errors import InvalidInput, UnknownName, near

if TYPE_CHECKING:
    import click

    from tunery.registry import Job, Version

__all__ = ["DISTRIBUTION", "PluginRecord", "Plugins", "load_entrypoint", "load_plugins"]

DISTRIBUTION = "tunery"
GROUP = "tunery"

log = logging.getLogger("tunery.plugins")

Descriptor = TypeVar("Descriptor", BaseSource, CheckInfo, FormatInfo, GateInfo, TrainerInfo)


class PluginRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that was found; `error` says why it was left out, if it was."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    error: str | None = None


class _Shelf(Generic[Descriptor]):
    """Descriptors of one kind by name, and whose they are."""

    def __init__(self, kind: str, descriptor: type[Descriptor]) -> None:
        self.kind = kind
        self._descriptor: type[Descriptor] = descriptor
        self.items: dict[str, Descriptor] = {}
        self._owners: dict[str, str] = {}

    def accept(self, owner: str) -> Callable[[Descriptor], None]:
        """The `register` callable that a plugin is handed."""

        def register(item: Descriptor) -> None:
            if not isinstance(item, self._descriptor):
                raise InvalidInput(
                    f"a {self.kind} is described by a {self._descriptor.__name__}, not by {type(item).__name__}"
                )
            if item.api_version > API_VERSION:
                raise InvalidInput(
                    f"{self.kind} {item.name!r} was written for plugin API {item.api_version}, this Tunery offers "
                    f"{API_VERSION}: upgrade Tunery"
                )
            if item.name in self.items:
                raise InvalidInput(f"{self.kind} {item.name!r} is already registered by {self._owners[item.name]!r}")
            self.items[item.name] = item
            self._owners[item.name] = owner

        return register

    def owner(self, name: str) -> str:
        """The plugin that registered `name`."""
        return self._owners[name]

    def forget(self, owner: str) -> None:
        """Drop what a plugin registered before it failed."""
        for name in [name for name, of in self._owners.items() if of == owner]:
            del self.items[name], self._owners[name]

    def get(self, name: str) -> Descriptor:
        """The descriptor called `name`; raise UnknownName with near matches."""
        if name not in self.items:
            raise UnknownName(self.kind, name, self.items)
        return self.items[name]


class Plugins:
    """Everything that was registered, by name, and typed calls of every hook."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._bases: _Shelf[BaseSource] = _Shelf("base source", BaseSource)
        self._formats: _Shelf[FormatInfo] = _Shelf("format", FormatInfo)
        self._checks: _Shelf[CheckInfo] = _Shelf("check", CheckInfo)
        self._trainers: _Shelf[TrainerInfo] = _Shelf("trainer", TrainerInfo)
        self._gates: _Shelf[GateInfo] = _Shelf("gate", GateInfo)
        self._records: list[PluginRecord] = []

    def add(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Register a loaded plugin; raise InvalidInput when it misspells a hook or registers something impossible."""
        shelves = (
            ("bases", self._bases),
            ("formats", self._formats),
            ("checks", self._checks),
            ("trainers", self._trainers),
            ("gates", self._gates),
        )
        self._check_name(name)
        try:
            self._manager.register(plugin, name=name)
            self._check_spelling(plugin, name)
            self._check_kinds(plugin, name)
            for hook, shelf in shelves:
                implementation = _implementation(self._manager, f"register_{hook}", plugin)
                if implementation is not None:
                    implementation(register=shelf.accept(name))
        except Exception:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            for _, shelf in shelves:
                shelf.forget(name)
            raise
        hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ()))
        self._records.append(PluginRecord(name=name, distribution=distribution, version=version, hooks=hooks))

    def add_entry_point(self, entry: EntryPoint, distribution: Distribution) -> None:
        """Load and register one entry point; what goes wrong is recorded, not raised."""
        owner, version = distribution.metadata["Name"], distribution.version
        try:
            self.add(entry.load(), entry.name, distribution=owner, version=version)
        except (Exception, SystemExit) as error:  # a third party's code may raise anything, and may try to exit
            self._leave_out(entry.name, owner, version, f"{type(error).__name__}: {error}")

    def report_missing(self, names: Iterable[str], known: Iterable[str]) -> None:
        """Record the names that were asked for and are not installed."""
        for name in sorted(names):
            self._leave_out(name, "", "", f"TUNERY_PLUGINS names it and it is not installed: {near(name, known)}")

    def records(self) -> list[PluginRecord]:
        """Every plugin that was found, those left out included."""
        return list(self._records)

    def base_sources(self) -> list[BaseSource]:
        """Sources of base models in the order in which they are asked."""
        return sorted(self._bases.items.values(), key=lambda source: (source.priority, source.name))

    def formats(self) -> Mapping[str, FormatInfo]:
        """Formats of training rows."""
        return self._formats.items

    def format(self, name: str) -> FormatInfo:
        """One format; raise UnknownName with near matches."""
        return self._formats.get(name)

    def checks(self) -> Mapping[str, CheckInfo]:
        """Checks of training data, by the rule they hold."""
        return self._checks.items

    def trainers(self) -> Mapping[str, TrainerInfo]:
        """Trainers."""
        return self._trainers.items

    def trainer(self, name: str) -> TrainerInfo:
        """One trainer; raise UnknownName with near matches."""
        return self._trainers.get(name)

    def gates(self) -> list[GateInfo]:
        """Gates in the order in which they are asked."""
        return sorted(self._gates.items.values(), key=lambda gate: (gate.priority, gate.name))

    def owner_of_trainer(self, name: str) -> str:
        """Package and version that a trainer comes from, for manifests."""
        plugin = self._trainers.owner(self.trainer(name).name)
        record = next(r for r in self._records if r.name == plugin and r.error is None)
        return f"{record.distribution} {record.version}".strip() or plugin

    def add_commands(self, cli: click.Group) -> None:
        """Let plugins add commands; one that would hide an existing command is left out with a warning."""
        import click

        for implementation in self._manager.hook.register_commands.get_hookimpls():
            own = click.Group("plugin")
            self._guarded("register_commands", implementation, {"cli": own})
            for name, command in own.commands.items():
                if cli.get_command(click.Context(cli), name) is not None:
                    log.warning("plugin %s may not replace the command %r", implementation.plugin_name, name)
                else:
                    cli.add_command(command, name)

    def job_event(self, job: Job, event: JobEvent) -> None:
        """Tell every observer that a job did something."""
        self._observe("job_event", {"job": job, "event": event})

    def version_published(self, version: Version, folder: Path) -> None:
        """Tell every observer that a version is visible."""
        self._observe("version_published", {"version": version, "folder": folder})

    def _leave_out(self, name: str, owner: str, version: str, reason: str) -> None:
        log.warning("plugin %s (%s) is left out: %s", name, f"{owner} {version}".strip() or "no package", reason)
        self._records.append(PluginRecord(name=name, distribution=owner, version=version, error=reason))

    def _observe(self, hook: str, values: dict[str, Any]) -> None:
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            self._guarded(hook, implementation, values)

    def _guarded(self, hook: str, implementation: pluggy.HookImpl, values: dict[str, Any]) -> None:
        """Call one implementation; what it raises is its own affair."""
        try:
            implementation.function(**{name: values[name] for name in implementation.argnames})
        except Exception:
            log.exception("plugin %s failed in %s", implementation.plugin_name, hook)

    def _check_name(self, name: str) -> None:
        """Two plugins of one name could not be told apart; the first keeps it."""
        for record in self._records:
            if record.name == name and record.error is None:
                owner = f"{record.distribution} {record.version}".strip() or "another plugin"
                raise InvalidInput(f"the plugin name {name!r} already belongs to {owner}: rename the entry point")

    def _check_kinds(self, plugin: object, name: str) -> None:
        """Wrappers are generators, which a host that calls one implementation at a time would never run."""
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and (implementation.wrapper or implementation.hookwrapper):
                    raise InvalidInput(f"plugin {name!r}: {caller.name} may not be a wrapper; write it as a function")

    def _check_spelling(self, plugin: object, name: str) -> None:
        """A hookimpl that matches no hook would never be called; name it, with the hooks it may have meant."""
        known = [hook for hook in vars(hookspecs) if getattr(getattr(hookspecs, hook), "tunery_spec", None)]
        for caller in self._manager.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                raise InvalidInput(f"plugin {name!r}: {UnknownName('hook', caller.name, known)}")


def load_plugins(*, allow: Iterable[str] | None = None, without: Iterable[str] = ()) -> Plugins:
    """Load every installed plugin that is allowed; `allow` None reads `TUNERY_PLUGINS`. Built-in ones are, unless `without` names them."""
    if allow is None and (listed := os.environ.get("TUNERY_PLUGINS")) is not None:
        allow = [name.strip() for name in listed.split(",") if name.strip()]
    allowed, unwanted = None if allow is None else set(allow), set(without)
    plugins, found = Plugins(), _installed()
    for entry, distribution in found:
        if entry.name in unwanted:
            continue
        if allowed is None or entry.name in allowed or _is_ours(distribution):
            plugins.add_entry_point(entry, distribution)
    names = {entry.name for entry, _ in found}
    plugins.report_missing((allowed or set()) - names, names)
    return plugins


def _installed() -> list[tuple[EntryPoint, Distribution]]:
    """Every entry point, ours first; of a distribution that is on the path twice, only what would be imported."""
    found: dict[str, list[tuple[EntryPoint, Distribution]]] = {}
    for distribution in distributions():
        entries = distribution.entry_points.select(group=GROUP)
        if entries:
            key = distribution.metadata["Name"].lower().replace("_", "-")
            found.setdefault(key, [(entry, distribution) for entry in entries])
    everything = [pair for pairs in found.values() for pair in pairs]
    return sorted(everything, key=lambda pair: (not _is_ours(pair[1]), pair[1].metadata["Name"], pair[0].name))


def _is_ours(distribution: Distribution) -> bool:
    name: str = distribution.metadata["Name"]
    return name == DISTRIBUTION


def load_entrypoint(path: str) -> Any:
    """Import what `package.module:name` names."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"the entry point {path!r} cannot be loaded: {error}") from error


def _implementation(manager: pluggy.PluginManager, hook: str, plugin: object) -> Callable[..., object] | None:
    """One plugin's own implementation of a hook."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is plugin:
            function: Callable[..., object] = implementation.function
            return function
    return None
