"""Run every check; one that fails itself is a line of the report, and never ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from tunery.gateway.doctor import database, disks, machine, server, software, stored
from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.registry.configuration.settings import Settings, read_settings
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home

__all__ = ["CHECKS", "examine"]

Check = Callable[[Examined], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    disks.check_permissions,
    disks.check_file_system,
    disks.check_disks,
    database.check_database,
    database.check_lock,
    stored.check_blobs,
    stored.check_staging,
    stored.check_bases,
    database.check_keys,
    database.check_clock,
    machine.check_processor,
    machine.check_kernels,
    machine.check_gpu,
    machine.check_memory,
    machine.check_limits,
    software.check_plugins,
    software.check_versions,
    software.check_torch,
    server.check_server,
)
_JUMP = 1.0


def examine(home: Home, *, deep: bool = False, server: str | None = None) -> Iterator[Finding]:
    """Every finding, in the order of the checks, as it is made."""
    wall, steady = time.time(), time.monotonic()
    settings, finding = _configuration(home)
    yield finding
    examined = Examined(home=home, settings=settings, now=wall, deep=deep, server=server)
    for check in CHECKS:
        yield from _guarded(check, examined)
    moved = (time.time() - wall) - (time.monotonic() - steady)
    if abs(moved) > _JUMP:
        yield warn("clock", f"it was set by {moved:+.1f} s just now", "find out what sets it; NTP moves it slowly")


def _configuration(home: Home) -> tuple[Settings, Finding]:
    """The settings, or where they have problems the defaults."""
    try:
        return read_settings(home.root), ok(
            "configuration", f"{home.root / 'config.toml'} and the environment are valid"
        )
    except InvalidInput as error:
        problems = error.message.splitlines()[1:] or [error.message]
        return Settings(), fail("configuration", "; ".join(problems)[:500], "see tunery config check")


def _guarded(check: Check, examined: Examined) -> Iterator[Finding]:
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        for finding in check(examined):
            yield msgspec.structs.replace(finding, found=" ".join(finding.found.split()))
    except Exception as error:  # whatever is broken is what is examined here
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        yield warn(
            name, f"could not be examined: {reason}", "check the permissions, and that this is the right TUNERY_HOME"
        )
