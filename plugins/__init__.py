"""The extension surface of Tunery, and everything built in that plugs into it.

A plugin registers what it adds from hooks, and is installed by an entry point in the group `tunery`:

    from tunery.plugins import TrainerInfo, TrainingParameters, hookimpl


    @hookimpl
    def register_trainers(register):
        register(
            TrainerInfo(name="mine", summary="an example", entrypoint="my_package:Mine", parameters=TrainingParameters)
        )

A program finds what is installed with `load_plugins`:

    plugins = load_plugins()
    print(sorted(plugins.trainers()))

The names below are imported on first use. None of them brings torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunery.plugins.discovery import load_plugins
    from tunery.plugins.hookspecs import (
        API_VERSION,
        BaseSource,
        CheckInfo,
        Conversation,
        FormatInfo,
        GateInfo,
        TrainerInfo,
        hookimpl,
    )
    from tunery.plugins.manager import PluginRecord, Plugins
    from tunery.plugins.parameters import TrainingParameters, read_parameters
    from tunery.registry.values import about

__all__ = [
    "API_VERSION",
    "BaseSource",
    "CheckInfo",
    "Conversation",
    "FormatInfo",
    "GateInfo",
    "PluginRecord",
    "Plugins",
    "TrainerInfo",
    "TrainingParameters",
    "about",
    "hookimpl",
    "load_plugins",
    "read_parameters",
]

_MODULES = {
    "PluginRecord": "manager",
    "Plugins": "manager",
    "TrainingParameters": "parameters",
    "load_plugins": "discovery",
    "read_parameters": "parameters",
}
"""Where a name is defined, if not in hookspecs."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tunery.registry.values" if name == "about" else f"{__name__}.{_MODULES.get(name, 'hookspecs')}"
    return getattr(import_module(module), name)
