"""Reads rows and renders them: the built-in formats and checks, `read_rows`, and the one `Renderer` of training and serving.

rows = read_rows(Path("tickets.jsonl"), formats=[CHAT, PROMPT_COMPLETION])
renderer = Renderer(Path(base.path))
examples = [example for row in rows for example in renderer.examples(row.messages, tools=row.tools)]
"""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.data.checks import CHECKS
from tunery.plugins.data.read.formats import BUILT_IN, CHAT, PROMPT_COMPLETION
from tunery.plugins.hookspecs import CheckInfo, FormatInfo, hookimpl

__all__ = ["CHAT", "PROMPT_COMPLETION", "register_checks", "register_formats"]


@hookimpl
def register_formats(register: Callable[[FormatInfo], None]) -> None:
    """The formats that need no plugin."""
    for info in BUILT_IN:
        register(info)


@hookimpl
def register_checks(register: Callable[[CheckInfo], None]) -> None:
    """The checks that need no plugin."""
    for info in CHECKS:
        register(info)
