"""Executors run the processes of queued jobs; a worker claims jobs and gives them to one."""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.hookspecs import ExecutorInfo, hookimpl

__all__ = ["register_executors"]


@hookimpl
def register_executors(register: Callable[[ExecutorInfo], None]) -> None:
    """Processes on this machine."""
    register(
        ExecutorInfo(
            name="local",
            summary="a process on this machine",
            entrypoint="tunery.plugins.executors.local:LocalExecutor",
        )
    )
