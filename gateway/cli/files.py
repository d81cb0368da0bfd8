"""`tunery files`: what became of files of examples."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.context import print_json
from tunery.gateway.cli.terminal.options import as_json
from tunery.gateway.cli.terminal.tables import print_table
from tunery.gateway.python.home import open_registry
from tunery.registry.errors import NotFound

__all__ = ["files"]

_SHA256 = re.compile(r"[0-9a-fA-F]{8,64}")


@click.group()
def files() -> None:
    """Find the versions that were made with a file of examples."""


@files.command("uses")
@click.argument("file", metavar="FILE|SHA256")
@as_json
def uses(file: str, as_json: bool) -> None:
    """Every version that was made with FILE, found by its content; a SHA256, or 8 characters of one, do as well."""
    sha256 = _sha256(file)
    with open_registry() as registry:
        versions = registry.uses(sha256)
    if as_json:
        print_json([{"version": use.version} | msgspec.structs.asdict(use) for use in versions])
        return
    rows = [(use.version, use.role, use.name, use.sha256[:12]) for use in versions]
    empty = f"no version was made with {file}" + (f" (sha256 {sha256[:12]}…)" if file != sha256 else "")
    print_table(("version", "role", "name", "sha256"), rows, empty=empty)


def _sha256(file: str) -> str:
    """The file's sha256, or the one that was written instead."""
    from tunery.plugins.data.read import data_digest

    if Path(file).exists():
        return data_digest(Path(file))[0]
    if not _SHA256.fullmatch(file):
        raise NotFound(
            f"there is no file {file}; name one, or its sha256 (8 characters at least)", code="file_not_found"
        )
    return file.lower()
