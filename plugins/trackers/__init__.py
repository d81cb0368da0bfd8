"""Trackers log the events of queued jobs to other systems; Weights & Biases is built in, where it is installed."""

from __future__ import annotations

from collections.abc import Callable

from tunery.plugins.hookspecs import TrackerInfo, hookimpl

__all__ = ["register_trackers"]


@hookimpl
def register_trackers(register: Callable[[TrackerInfo], None]) -> None:
    """Weights & Biases."""
    register(
        TrackerInfo(
            name="wandb",
            summary="Weights & Biases",
            package="wandb",
            entrypoint="tunery.plugins.trackers.wandb:start",
            read="tunery.plugins.trackers.wandb:read_options",
        )
    )
