"""What the commands need of jobs, wherever those are: in the registry of this machine, or behind a server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import msgspec
import rich_click as click

from tunery.gateway.cli.terminal.options import server_key
from tunery.gateway.cli.terminal.training_options import TrainingOptions
from tunery.registry.jobs.queue import Wanted
from tunery.registry.records import StoredEvent

__all__ = ["JobView", "JobsBackend", "job_id_argument", "with_jobs"]

Command = Callable[..., Any]

job_id_argument = click.argument("job_id", metavar="JOB")


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as the commands show it; times are Unix seconds.

    One whose process is gone is `interrupted`, whatever was written last. `source` is train for a job of `tunery
    train`, which is on this machine only.
    """

    id: str
    state: str
    adapter: str
    trainer: str
    source: Literal["queue", "train"]
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    version: int | None = None
    model: str | None = None
    error: str | None = None
    code: str | None = None
    waiting: str | None = None
    priority: int = 0
    base: str | None = None
    data: tuple[str, ...] = ()
    validation: str | None = None
    parent: str | None = None
    alias: str | None = None
    step: int | None = None
    steps: int | None = None


class JobsBackend(Protocol):
    """Where jobs are. Methods that are given the id of no job raise NotFound."""

    def jobs(self) -> list[JobView]:
        """All jobs, newest first."""

    def job(self, job_id: str) -> JobView:
        """A job."""

    def details(self, job_id: str) -> dict[str, Any]:
        """What there is to show of a job besides: its `last` event, and its `manifest` where that is at hand."""

    def submit(self, asked: TrainingOptions, *, priority: int) -> str:
        """Queue a job, with copies of its files; returns its id."""

    def request(self, job_id: str, wanted: Wanted) -> JobView:
        """Ask a job to pause or to stop; raises Conflict for one that cannot."""

    def resume(self, job_id: str) -> None:
        """Queue a job again that was paused or has failed; raises Conflict for any other."""

    def events(self, job_id: str, *, following: bool) -> Iterator[StoredEvent]:
        """A queued job's history; when `following` also what is added to it, until it has ended or is paused."""


def with_jobs(command: Command) -> Command:
    """The options --server and --key; the command is given what they choose as `jobs`."""

    @click.option(
        "--server",
        metavar="URL",
        envvar="TUNERY_SERVER",
        help="The jobs of this server, not of TUNERY_HOME.  [env: TUNERY_SERVER]",
    )
    @server_key
    @functools.wraps(command)
    def wrapped(*, server: str | None, key: str | None, **given: Any) -> Any:
        with _open(server, key) as jobs:
            return command(jobs=jobs, **given)

    return wrapped


@contextmanager
def _open(server: str | None, key: str | None) -> Iterator[JobsBackend]:
    if server:
        from tunery.gateway.cli.jobs.server import ServerJobs

        with ServerJobs(server, key=key) as jobs:
            yield jobs
        return
    from tunery.gateway.cli.jobs.local import LocalJobs
    from tunery.gateway.python.home import open_registry

    with open_registry() as registry:
        yield LocalJobs(registry)
