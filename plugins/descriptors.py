"""Tables of what plugins registered, by kind, and loading the code that a descriptor names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar

from tunery.plugins.hookspecs import (
    API_VERSION,
    BaseSource,
    CheckInfo,
    ExecutorInfo,
    FormatInfo,
    GateInfo,
    TrackerInfo,
    TrainerInfo,
)
from tunery.registry.errors import InvalidInput, UnknownName

__all__ = ["DescriptorTable", "load_entrypoint"]

Descriptor = TypeVar("Descriptor", BaseSource, CheckInfo, ExecutorInfo, FormatInfo, GateInfo, TrackerInfo, TrainerInfo)


class DescriptorTable(Generic[Descriptor]):
    """Descriptors of one kind by name, with the plugin that registered each."""

    def __init__(self, kind: str, descriptor: type[Descriptor]) -> None:
        self.kind = kind
        self._descriptor: type[Descriptor] = descriptor
        self.items: dict[str, Descriptor] = {}
        self._owners: dict[str, str] = {}

    def registrar(self, plugin: str) -> Callable[[Descriptor], None]:
        """The `register` callable that a plugin's hook is called with.

        It raises InvalidInput for what cannot be registered.
        """

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
            self._owners[item.name] = plugin

        return register

    def get(self, name: str) -> Descriptor:
        """The descriptor called `name`. Raises UnknownName with near matches."""
        if name not in self.items:
            raise UnknownName(self.kind, name, self.items)
        return self.items[name]

    def owner(self, name: str) -> str:
        """The plugin that registered `name`."""
        return self._owners[name]

    def remove_all_of(self, plugin: str) -> None:
        """Remove everything that a plugin registered before it failed."""
        for name in [name for name, owner in self._owners.items() if owner == plugin]:
            del self.items[name], self._owners[name]


def load_entrypoint(path: str) -> Any:
    """Import what `package.module:name` names. Raises InvalidInput where it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"the entry point {path!r} cannot be loaded: {error}") from error
