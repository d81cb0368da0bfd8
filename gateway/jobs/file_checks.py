"""Checks uploaded files of examples with the rules of `tunery data check`, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from tunery.plugins.data.checks.runner import CheckOptions, check_data
from tunery.plugins.manager import Plugins
from tunery.registry.errors import NotFound, TuneryError
from tunery.registry.names import file_name
from tunery.registry.records import DataFile
from tunery.registry.registry import Registry
from tunery.registry.storage import leases

__all__ = ["CHECKED", "FileChecks"]

log = logging.getLogger("tunery.gateway")

CHECKED = frozenset({"fine-tune"})
"""Purposes of files that are rows to train on."""
AT_ONCE = 4 << 20
"""Bytes of a file that is checked before its upload is answered."""
SHOWN = 5
"""Findings in `status_details`."""
MAX_LENGTH = 1 << 30
"""Files are checked without a base, so no row is too long yet."""


class FileChecks:
    """The checks of one gateway: one file at a time, which may use all cores."""

    def __init__(self, registry: Registry, plugins: Plugins) -> None:
        self._registry, self._plugins = registry, plugins
        self._turn = asyncio.Lock()
        self._pending: set[asyncio.Task[DataFile]] = set()

    async def after_upload(self, file: DataFile) -> DataFile:
        """Check a file: at once where it is small, else in the background."""
        if file.purpose not in CHECKED:
            return file
        if file.size <= AT_ONCE:
            return await self._check(file)
        self._start(file)
        return file

    async def catch_up(self) -> None:
        """Check in the background what was uploaded and not checked, because a server ended meanwhile."""
        after = None
        while True:
            files, more = await asyncio.to_thread(
                self._registry.data_files.page, tenant=None, purpose=None, after=after, limit=1000
            )
            for file in files:
                if file.status == "uploaded" and file.purpose in CHECKED:
                    self._start(file)
            if not more:
                return
            after = files[-1].id

    async def stop(self) -> None:
        """Stop checking; what is not checked is caught up by the next server."""
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _start(self, file: DataFile) -> None:
        task = asyncio.create_task(self._check(file), name=f"check {file.id}")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _check(self, file: DataFile) -> DataFile:
        async with self._turn:
            return await asyncio.to_thread(_check, self._registry, self._plugins, file)


def _check(registry: Registry, plugins: Plugins, file: DataFile) -> DataFile:
    """Check a stored file under its own name, whose end says which format it has."""
    try:
        status, details, findings = _findings(registry, plugins, file)
    except TuneryError as error:
        status, details, findings = "error", error.message, None
    except Exception:
        log.exception("the check of %s failed", file.id)
        status, details, findings = "error", "the check failed; the server's log says why", None
    try:
        return registry.data_files.checked(file.id, status=status, details=details, findings=findings)
    except NotFound:
        return file


def _findings(registry: Registry, plugins: Plugins, file: DataFile) -> tuple[str, str | None, dict[str, Any]]:
    stored = registry.data_files.present_path(file)
    with leases.staged(registry.home.staging, "check") as folder:
        path = folder / file_name(file.name)
        path.symlink_to(stored)
        report = check_data([path], CheckOptions(max_length=MAX_LENGTH), plugins=plugins)
    errors = report.errors
    if not errors:
        return "processed", None, msgspec.to_builtins(report)
    count = report.count("error")
    lines = [f"{count} error{'s' * (count > 1)} in the data", *map(str, errors[:SHOWN])]
    if count > SHOWN:
        lines.append(f"and {count - SHOWN} more: GET /v1/files/{file.id}/findings")
    return "error", "\n".join(lines), msgspec.to_builtins(report)
