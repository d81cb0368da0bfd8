"""Training data: the built-in formats and checks, reading files of rows, and rendering them to tokens.

    rows = read_rows(Path("tickets.jsonl"), formats=[CHAT, PROMPT_COMPLETION])
    renderer = Renderer(Path(base.path))
    examples = [example for row in rows for example in renderer.examples(row.messages, tools=row.tools)]

Checking files, as `tunery data check` does:

    report = check_data([Path("tickets.jsonl")], CheckOptions(max_length=1024), plugins=load_plugins())
    print(*report.findings, sep="\\n")

Reading, rendering and checking are imported on first use, so that registering formats and checks stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tunery.plugins.data.checks import CHECKS
from tunery.plugins.data.read.formats import BUILT_IN, CHAT, PROMPT_COMPLETION
from tunery.plugins.hookspecs import CheckInfo, FormatInfo, hookimpl
from tunery.registry.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from tunery.plugins.data.checks.runner import CheckOptions, check_data
    from tunery.plugins.data.read.dataset import read_rows
    from tunery.plugins.data.render.renderer import Renderer

__all__ = [
    "CHAT",
    "CheckOptions",
    "PROMPT_COMPLETION",
    "Renderer",
    "check_data",
    "read_rows",
    "register_checks",
    "register_formats",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CheckOptions": "tunery.plugins.data.checks.runner",
        "Renderer": "tunery.plugins.data.render.renderer",
        "check_data": "tunery.plugins.data.checks.runner",
        "read_rows": "tunery.plugins.data.read.dataset",
    },
)


@hookimpl
def register_formats(register: Callable[[FormatInfo], None]) -> None:
    """Register the built-in formats."""
    for info in BUILT_IN:
        register(info)


@hookimpl
def register_checks(register: Callable[[CheckInfo], None]) -> None:
    """Register the built-in checks."""
    for info in CHECKS:
        register(info)
