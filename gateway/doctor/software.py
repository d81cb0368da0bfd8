"""Examine what is installed: settings, plugins, the versions of libraries, and with `deep` torch itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.plugins.discovery import DISTRIBUTION, load_plugins
from tunery.registry.errors import some_of

__all__ = ["TESTED", "check_plugins", "check_torch", "check_versions"]

TESTED = Path(__file__).with_name("tested.txt")
"""The versions of direct dependencies that Tunery is tested with, from constraints.txt."""
_PROBE_SECONDS = 120


def check_plugins(examined: Examined) -> Iterator[Finding]:
    """Plugins that were left out, and why."""
    records = load_plugins().records()
    failed = [record for record in records if record.error is not None]
    for record in failed:
        yield fail("plugins", f"{record.name}: {record.error}", "update or uninstall it; TUNERY_PLUGINS leaves it out")
    if not failed:
        foreign = [record.name for record in records if record.distribution != DISTRIBUTION]
        yield ok("plugins", f"{len(records)} loaded" + (f", of others: {some_of(foreign, 5)}" if foreign else ""))


def check_versions(examined: Examined) -> Iterator[Finding]:
    """Libraries that are missing, too old, or of another generation than those tested."""
    wrong, untested, count = [], [], 0
    tested = _tested()
    for text in requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        installed = _installed(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'is missing'} (needs {requirement.specifier})")
        elif (known := tested.get(requirement.name)) is not None and _generation(installed) != _generation(known):
            untested.append(f"{requirement.name} {installed} (tested: {known})")
    if wrong:
        yield fail("libraries", some_of(wrong, 5), "reinstall Tunery, with constraints.txt for the tested versions")
    if untested:
        yield warn("libraries", some_of(untested, 5), "if something fails, install the tested versions")
    if not wrong and not untested:
        yield ok("libraries", f"{count} in the generations that are tested, Tunery {version(DISTRIBUTION)}")


def _tested() -> dict[str, Version]:
    lines = TESTED.read_text().split()
    return {name: Version(number) for name, _, number in (line.partition("==") for line in lines)}


def _installed(name: str) -> Version | None:
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None


def _generation(number: Version) -> tuple[int, ...]:
    """What changes when a library breaks its users: the major version, and for 0.x the minor."""
    return number.release[:2] if number.major == 0 else number.release[:1]


def check_torch(examined: Examined) -> Iterator[Finding]:
    """Whether torch, the kernels and the GPU work; in a process of its own."""
    if not examined.deep:
        return
    command = [sys.executable, "-m", "tunery.gateway.doctor.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
        found: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        last = done.stderr.strip().splitlines()[-1:] if isinstance(error, json.JSONDecodeError) else ["no answer"]
        yield fail("torch", f"it does not work here: {' '.join(last) or 'the process ended'}", "reinstall torch")
        return
    yield ok("torch", found["torch"])
    for name, reason in found["kernels"].items():
        yield (
            warn("kernels", f"{name}: {reason}", "it computes with torch, slower")
            if reason
            else ok("kernels", f"{name}: loaded")
        )
    for gpu in found["gpus"]:
        text = f"{gpu['name']}, {gpu['free'] / 1e9:.1f} GB of {gpu['total'] / 1e9:.1f} GB free"
        yield (
            ok("gpu", text) if gpu["right"] else fail("gpu", f"{text}; computes wrong", "replace or leave out this GPU")
        )
