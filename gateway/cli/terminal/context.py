"""Owns what every command needs: the registry, the plugins, who is acting, and printing JSON."""

from __future__ import annotations

import getpass
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.gateway.cli.terminal.streams import ascii_text, is_utf8

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins
    from tunery.registry.registry import Registry

__all__ = ["actor", "open_registry", "plugins", "print_json", "say"]


def open_registry(*, scarce: bool = False) -> Registry:
    """The registry under TUNERY_HOME; `scarce` also where its disk is full."""
    from tunery.registry.registry import Registry

    return Registry.open(scarce=scarce)


def plugins() -> Plugins:
    """Every plugin that is installed and allowed."""
    from tunery.plugins.discovery import load_plugins

    return load_plugins()


def actor() -> str:
    """Who to record: TUNERY_ACTOR, or the user's name."""
    try:
        name = os.environ.get("TUNERY_ACTOR") or getpass.getuser()
        return os.fsencode(name).decode("utf-8", "replace")
    except (OSError, KeyError):
        return "unknown"


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII where stdout is not UTF-8."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write((text if is_utf8(sys.stdout) else ascii_text(text)) + "\n")


def say(text: str) -> None:
    """One line of progress on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
