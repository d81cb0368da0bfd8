"""What every command needs: the plugins, and printing JSON and progress."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from tunery.gateway.cli.terminal.streams import ascii_text, is_utf8
from tunery.plugins.runtime.log_format import notice

if TYPE_CHECKING:
    from tunery.plugins.manager import Plugins

__all__ = ["plugins", "print_json", "say"]


def plugins() -> Plugins:
    """Every plugin that is installed and allowed."""
    from tunery.plugins.discovery import load_plugins

    return load_plugins()


def print_json(value: Any) -> None:
    """One JSON value on stdout, in ASCII where stdout is not UTF-8."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    sys.stdout.write((text if is_utf8(sys.stdout) else ascii_text(text)) + "\n")


def say(text: str) -> None:
    """One line of progress on stderr, as an event where a server logs those as JSON."""
    notice(text)
