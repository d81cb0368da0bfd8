"""Reads rows and renders them: the built-in formats, `read_rows`, and the one `Renderer` of training and serving.

rows = read_rows(Path("tickets.jsonl"), formats=[CHAT, PROMPT_COMPLETION])
renderer = Renderer(Path(base.path))
examples = [example for row in rows for example in renderer.examples(row.messages)]
"""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.data.formats import CHAT, PROMPT_COMPLETION
from tunery.plugins.hookspecs import FormatInfo, hookimpl

__all__ = ["CHAT", "PROMPT_COMPLETION", "register_formats"]


@hookimpl
def register_formats(register: Callable[[FormatInfo], None]) -> None:
    """The formats that need no plugin."""
    register(CHAT)
    register(PROMPT_COMPLETION)
