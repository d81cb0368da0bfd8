"""Jobs in the registry of this machine: those of the queue, and those of `tunery train`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tunery.gateway.cli.jobs.backend import JobView
from tunery.gateway.cli.terminal.context import plugins, say
from tunery.gateway.cli.terminal.training_options import TrainingOptions
from tunery.gateway.python.home import current_actor
from tunery.plugins.events import event_fields, read_events
from tunery.plugins.parameters import read_parameters
from tunery.plugins.training.folder import JobFolder
from tunery.registry import Job
from tunery.registry.errors import Conflict, InvalidInput
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.job_queue import new_id
from tunery.registry.jobs.queue import Wanted
from tunery.registry.jobs.table import ENDED
from tunery.registry.names import check_adapter, check_alias, tenant_of
from tunery.registry.records import JobRequest, StoredEvent
from tunery.registry.registry import Registry

__all__ = ["LocalJobs"]

POLL_SECONDS = 0.2


class LocalJobs:
    """The jobs of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def jobs(self) -> list[JobView]:
        """All jobs, newest first."""
        return [_view(job, self._state(job)) for job in self._registry.jobs()]

    def job(self, job_id: str) -> JobView:
        """A job."""
        job = self._registry.job(job_id)
        return _view(job, self._state(job))

    def details(self, job_id: str) -> dict[str, Any]:
        """The last event, and the manifest once there is one."""
        folder = self._folder(job_id)
        shown: dict[str, Any] = {"last": self._last_event(job_id)}
        if folder.manifest.exists():
            shown["manifest"] = msgspec.json.decode(folder.manifest.read_bytes())
        return shown

    def submit(self, asked: TrainingOptions, *, priority: int) -> str:
        """Store the files in the registry and queue a job."""
        from tunery.plugins.bases.resolve import resolve_base

        loaded, registry = plugins(), self._registry
        _check(asked)
        trainer = loaded.trainer(asked.method)
        read_parameters(trainer.parameters, asked.parameters)
        resolved = resolve_base(asked.base, registry=registry, plugins=loaded, say=say)
        parent = registry.resolve(asked.parent).name if asked.parent else None
        job_id = new_id()
        request = JobRequest(
            adapter=asked.adapter,
            trainer=asked.method,
            base=resolved.digest,
            data=tuple(self._store(path, asked.adapter) for path in asked.data),
            validation=self._store(asked.validation, asked.adapter) if asked.validation else None,
            parent=parent,
            alias=asked.alias,
            allow=asked.allow,
            force=asked.force,
            device=asked.device,
            parameters=dict(asked.parameters),
            actor=current_actor(),
        )
        return registry.queue.submit(
            request,
            tenant=tenant_of(asked.adapter),
            priority=priority,
            details={"model": resolved.name, "base": resolved.name, "method": trainer.openai_method},
            job_id=job_id,
            notes=[Note(kind="created", message=f"Created fine-tuning job: {job_id}")],
        ).id

    def request(self, job_id: str, wanted: Wanted) -> JobView:
        """Ask a job to pause or to stop."""
        job = self._registry.job(job_id)
        asked = self._signal(job, wanted) if job.request is None else self._registry.queue.request(job_id, wanted)
        return _view(asked, asked.state)

    def resume(self, job_id: str) -> None:
        """Queue a job again that was paused or has failed."""
        if self._registry.job(job_id).request is None:
            raise Conflict(
                f"{job_id} was not queued; continue it with tunery train --resume {job_id}", code="not_queued"
            )
        self._registry.queue.resume(job_id)

    def events(self, job_id: str, *, following: bool) -> Iterator[StoredEvent]:
        """The history, and what is added to it."""
        self._registry.job(job_id)
        return self._follow(job_id) if following else self._events_after(job_id, 0)

    def _follow(self, job_id: str) -> Iterator[StoredEvent]:
        seen, changes = 0, -1
        while True:
            latest = self._registry.changes()
            if latest == changes:
                time.sleep(POLL_SECONDS)
                continue
            # The state before the events, so that the last of them are not missed.
            changes, state = latest, self._registry.job(job_id).state
            for event in self._events_after(job_id, seen):
                seen = event.number
                yield event
            if state in ENDED or state == "paused":
                return

    def _events_after(self, job_id: str, number: int) -> Iterator[StoredEvent]:
        while events := self._registry.queue.events_after(job_id, number):
            yield from events
            number = events[-1].number

    def _last_event(self, job_id: str) -> dict[str, Any] | None:
        if self._registry.job(job_id).request is not None:
            events, _ = self._registry.queue.events_before(job_id, None, limit=1)
            return next(({"kind": e.kind, "number": e.number, "at": e.at} | e.data for e in events), None)
        written = deque(read_events(self._folder(job_id).events), maxlen=1)
        return event_fields(written[0]) if written else None

    def _state(self, job: Job) -> str:
        """The job's state; one whose process is gone is interrupted, whatever was written last."""
        if job.state != "running":
            return job.state
        if job.request is not None:
            return "interrupted" if (job.lease_until or 0.0) < time.time() else "running"
        from tunery.plugins.training.job.lock import is_running

        return "running" if is_running(self._folder(job.id)) else "interrupted"

    def _signal(self, job: Job, wanted: Wanted) -> Job:
        """Ask the process that runs a job by itself."""
        from tunery.plugins.training.job.control import signal_job
        from tunery.plugins.training.job.lock import is_running

        if not is_running(self._folder(job.id)):
            raise Conflict(f"{job.id} does not run: it is {self._state(job)}")
        signal_job(self._folder(job.id), wanted)
        return job

    def _store(self, path: Path, adapter: str) -> str:
        files = self._registry.data_files
        return files.add(path, tenant=tenant_of(adapter), purpose="fine-tune", name=path.name, status="processed").id

    def _folder(self, job_id: str) -> JobFolder:
        return JobFolder(self._registry.home.jobs / job_id)


def _check(asked: TrainingOptions) -> None:
    """Refuse names and files that cannot be, before anything is fetched or stored."""
    check_adapter(asked.adapter)
    if asked.alias is not None:
        check_alias(asked.alias)
    for path in (*asked.data, *([asked.validation] if asked.validation else [])):
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file that can be read", code="invalid_data")


def _view(job: Job, state: str) -> JobView:
    request, details, progress = job.request, job.details or {}, job.progress or {}
    # As over HTTP, where the end of a job that did not fail is no error.
    shows_error = request is None or job.state == "failed"
    model = (request.model_name if request else None) or f"{job.adapter}@{job.version}"
    return JobView(
        id=job.id,
        state=state,
        adapter=job.adapter,
        trainer=job.trainer,
        source="train" if request is None else "queue",
        created_at=int(job.created_at),
        started_at=None if job.started_at is None else int(job.started_at),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        version=job.version,
        model=model if job.state == "succeeded" and request is not None else None,
        error=job.error if shows_error else None,
        code=job.code if shows_error else None,
        waiting=job.waiting,
        priority=job.priority,
        base=details.get("base"),
        data=request.data if request else (),
        validation=request.validation if request else None,
        parent=request.parent if request else None,
        alias=request.alias if request else None,
        step=progress.get("step"),
        steps=progress.get("steps"),
    )
