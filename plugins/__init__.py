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

from typing import TYPE_CHECKING

from tunery.registry.lazy_exports import lazy_exports

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

__getattr__ = lazy_exports(
    __name__,
    {
        "API_VERSION": "tunery.plugins.hookspecs",
        "BaseSource": "tunery.plugins.hookspecs",
        "CheckInfo": "tunery.plugins.hookspecs",
        "Conversation": "tunery.plugins.hookspecs",
        "FormatInfo": "tunery.plugins.hookspecs",
        "GateInfo": "tunery.plugins.hookspecs",
        "PluginRecord": "tunery.plugins.manager",
        "Plugins": "tunery.plugins.manager",
        "TrainerInfo": "tunery.plugins.hookspecs",
        "TrainingParameters": "tunery.plugins.parameters",
        "about": "tunery.registry.values",
        "hookimpl": "tunery.plugins.hookspecs",
        "load_plugins": "tunery.plugins.discovery",
        "read_parameters": "tunery.plugins.parameters",
    },
)
