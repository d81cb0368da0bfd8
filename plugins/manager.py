"""Hold loaded plugins and call their hooks.

The only module that uses pluggy, so that the rest of the code makes typed calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from tunery.plugins import hookspecs
from tunery.plugins.descriptors import DescriptorTable
from tunery.plugins.events import JobEvent
from tunery.plugins.hookspecs import BaseSource, CheckInfo, ExecutorInfo, FormatInfo, GateInfo, TrackerInfo, TrainerInfo
from tunery.registry.errors import InvalidInput, UnknownName, near

if TYPE_CHECKING:
    import click

    from tunery.registry import Job, Version

__all__ = ["GROUP", "PluginRecord", "Plugins"]

GROUP = "tunery"
"""The entry-point group, and pluggy's project name."""

log = logging.getLogger("tunery.plugins")


class PluginRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An installed plugin; `error` says why it was left out, None if it was not."""

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    error: str | None = None


class Plugins:
    """Everything that was registered, by name, and typed calls of every hook."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._bases: DescriptorTable[BaseSource] = DescriptorTable("base source", BaseSource)
        self._formats: DescriptorTable[FormatInfo] = DescriptorTable("format", FormatInfo)
        self._checks: DescriptorTable[CheckInfo] = DescriptorTable("check", CheckInfo)
        self._trainers: DescriptorTable[TrainerInfo] = DescriptorTable("trainer", TrainerInfo)
        self._gates: DescriptorTable[GateInfo] = DescriptorTable("gate", GateInfo)
        self._executors: DescriptorTable[ExecutorInfo] = DescriptorTable("executor", ExecutorInfo)
        self._trackers: DescriptorTable[TrackerInfo] = DescriptorTable("tracker", TrackerInfo)
        self._records: list[PluginRecord] = []

    def add(self, plugin: object, name: str, *, distribution: str = "", version: str = "") -> None:
        """Register a loaded plugin.

        Raises InvalidInput where it misspells a hook or registers what cannot be registered.
        """
        tables = (
            ("bases", self._bases),
            ("formats", self._formats),
            ("checks", self._checks),
            ("trainers", self._trainers),
            ("gates", self._gates),
            ("executors", self._executors),
            ("trackers", self._trackers),
        )
        self._refuse_taken_name(name)
        try:
            self._manager.register(plugin, name=name)
            self._refuse_unknown_hooks(plugin, name)
            self._refuse_wrappers(plugin, name)
            for hook, table in tables:
                implementation = _implementation(self._manager, f"register_{hook}", plugin)
                if implementation is not None:
                    implementation(register=table.registrar(name))
        except Exception:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            for _, table in tables:
                table.remove_all_of(name)
            raise
        hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ()))
        self._records.append(PluginRecord(name=name, distribution=distribution, version=version, hooks=hooks))

    def add_entry_point(self, entry: EntryPoint, distribution: Distribution) -> None:
        """Load and register one entry point. Errors are recorded, not raised."""
        owner, version = distribution.metadata["Name"], distribution.version
        try:
            self.add(entry.load(), entry.name, distribution=owner, version=version)
        except (Exception, SystemExit) as error:  # a third party's code may raise anything, and may try to exit
            self._leave_out(entry.name, owner, version, f"{type(error).__name__}: {error}")

    def report_missing(self, names: Iterable[str], installed: Iterable[str]) -> None:
        """Record names that TUNERY_PLUGINS lists and that are not installed."""
        for name in sorted(names):
            self._leave_out(name, "", "", f"TUNERY_PLUGINS names it and it is not installed: {near(name, installed)}")

    def records(self) -> list[PluginRecord]:
        """Every installed plugin, including those left out."""
        return list(self._records)

    def base_sources(self) -> list[BaseSource]:
        """Sources of base models, in the order in which they are tried."""
        return sorted(self._bases.items.values(), key=lambda source: (source.priority, source.name))

    def formats(self) -> Mapping[str, FormatInfo]:
        """Formats of training rows."""
        return self._formats.items

    def format(self, name: str) -> FormatInfo:
        """One format. Raises UnknownName with near matches."""
        return self._formats.get(name)

    def checks(self) -> Mapping[str, CheckInfo]:
        """Checks of training data, by rule."""
        return self._checks.items

    def trainers(self) -> Mapping[str, TrainerInfo]:
        """Trainers."""
        return self._trainers.items

    def trainer(self, name: str) -> TrainerInfo:
        """One trainer. Raises UnknownName with near matches."""
        return self._trainers.get(name)

    def gates(self) -> list[GateInfo]:
        """Gates, in the order in which they run."""
        return sorted(self._gates.items.values(), key=lambda gate: (gate.priority, gate.name))

    def executor(self, name: str) -> ExecutorInfo:
        """One way to run queued jobs. Raises UnknownName with near matches."""
        return self._executors.get(name)

    def tracker(self, name: str) -> TrackerInfo:
        """One system that jobs can be logged to. Raises UnknownName with near matches."""
        return self._trackers.get(name)

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
        """Call every observer of job events."""
        self._observe("job_event", {"job": job, "event": event})

    def version_published(self, version: Version, folder: Path) -> None:
        """Call every observer of published versions."""
        self._observe("version_published", {"version": version, "folder": folder})

    def _leave_out(self, name: str, owner: str, version: str, reason: str) -> None:
        log.warning("plugin %s (%s) is left out: %s", name, f"{owner} {version}".strip() or "no package", reason)
        self._records.append(PluginRecord(name=name, distribution=owner, version=version, error=reason))

    def _observe(self, hook: str, values: dict[str, Any]) -> None:
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            self._guarded(hook, implementation, values)

    def _guarded(self, hook: str, implementation: pluggy.HookImpl, values: dict[str, Any]) -> None:
        """Call one implementation; what it raises is logged and goes no further."""
        try:
            implementation.function(**{name: values[name] for name in implementation.argnames})
        except Exception:
            log.exception("plugin %s failed in %s", implementation.plugin_name, hook)

    def _refuse_taken_name(self, name: str) -> None:
        """Refuse a second plugin of the same name: nothing could distinguish the two."""
        for record in self._records:
            if record.name == name and record.error is None:
                owner = f"{record.distribution} {record.version}".strip() or "another plugin"
                raise InvalidInput(f"the plugin name {name!r} already belongs to {owner}: rename the entry point")

    def _refuse_wrappers(self, plugin: object, name: str) -> None:
        """Refuse hook wrappers: they are generators, which a host that calls one implementation at a time would never
        run."""
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and (implementation.wrapper or implementation.hookwrapper):
                    raise InvalidInput(f"plugin {name!r}: {caller.name} may not be a wrapper; write it as a function")

    def _refuse_unknown_hooks(self, plugin: object, name: str) -> None:
        """Refuse a hookimpl that matches no hook, which would never be called; suggest the hooks it may have meant."""
        hooks = [hook for hook in vars(hookspecs) if getattr(getattr(hookspecs, hook), "tunery_spec", None)]
        for caller in self._manager.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                raise InvalidInput(f"plugin {name!r}: {UnknownName('hook', caller.name, hooks)}")


def _implementation(manager: pluggy.PluginManager, hook: str, plugin: object) -> Callable[..., object] | None:
    """A plugin's own implementation of a hook, or None."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is plugin:
            function: Callable[..., object] = implementation.function
            return function
    return None
