"""`tunery worker`: run queued jobs apart from the server."""

from __future__ import annotations

import signal
import threading
from typing import Any

import rich_click as click

from tunery.gateway.cli.terminal.context import plugins, say
from tunery.gateway.cli.terminal.options import setting_options
from tunery.registry.configuration.settings import JobsSettings, read_settings
from tunery.registry.home import Home

__all__ = ["worker"]


@click.command()
@setting_options(JobsSettings)
def worker(**given: Any) -> None:
    """Run queued training jobs until it is stopped; those that run then go on elsewhere from their checkpoints.

    Each setting can also come from TUNERY_HOME/config.toml ([jobs]) or from TUNERY_JOBS_<NAME>.
    """
    from tunery.gateway.jobs.worker_thread import WorkerThread
    from tunery.gateway.webhooks.delivery import WebhookThread

    home = Home.from_env()
    settings = read_settings(home.root, overrides={"jobs": given})
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with WebhookThread(home, settings.webhooks), WorkerThread(home, settings.jobs, plugins(), say=say):
        say("ready: waiting for jobs")
        stopped.wait()
        say("stopping: jobs write a checkpoint and go back to the queue")
