"""Jobs behind a server, over its HTTP API."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from tunery.gateway.api.schemas.files import DeletedFile, FileObject
from tunery.gateway.api.schemas.fine_tuning import (
    FineTuningEvent,
    FineTuningEventList,
    FineTuningJob,
    FineTuningJobList,
    JobError,
)
from tunery.gateway.cli.jobs.backend import JobView
from tunery.gateway.cli.jobs.connection import Connection
from tunery.gateway.cli.terminal.text import visible
from tunery.gateway.cli.terminal.training_options import TrainingOptions
from tunery.registry.errors import InvalidInput, NotFound, TuneryError, Unavailable
from tunery.registry.jobs.queue import Wanted
from tunery.registry.records import StoredEvent

__all__ = ["ServerJobs"]

PAGE = 500
QUIET_SECONDS = 60.0
"""Seconds without a word, which the server sends every ten, after which a connection counts as broken."""
RECONNECT_SECONDS = 0.5
GIVE_UP_SECONDS = 120.0
"""Seconds without a connection after which following ends."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class ServerJobs(Connection):
    """The queued jobs of the key's tenant."""

    def jobs(self) -> list[JobView]:
        """All jobs, newest first."""
        return list(map(_view, self._pages("fine_tuning/jobs", FineTuningJobList)))

    def job(self, job_id: str) -> JobView:
        """A job."""
        return _view(self.call("GET", _path(job_id), FineTuningJob))

    def details(self, job_id: str) -> dict[str, Any]:
        """The last event."""
        events = self.call("GET", f"{_path(job_id)}/events", FineTuningEventList, params={"limit": 1}).data
        return {"last": events[0].tunery if events else None}

    def submit(self, asked: TrainingOptions, *, priority: int) -> str:
        """Upload the files and create a job; what was uploaded for one that is refused is deleted again."""
        _check(asked)
        uploaded: list[str] = []
        try:
            training = self._upload(asked.data[0], uploaded)
            validation = self._upload(asked.validation, uploaded) if asked.validation else None
            return self._create(_body(asked, training, validation, priority=priority))
        except Unavailable:
            # The job may be there, and need them.
            raise
        except TuneryError:
            for file in uploaded:
                with suppress(TuneryError):
                    self.call("DELETE", f"files/{file}", DeletedFile)
            raise

    def request(self, job_id: str, wanted: Wanted) -> JobView:
        """Ask a job to pause or to stop."""
        return _view(self.call("POST", f"{_path(job_id)}/{wanted}", FineTuningJob))

    def resume(self, job_id: str) -> None:
        """Queue a job again that was paused or has failed."""
        self.call("POST", f"{_path(job_id)}/resume", FineTuningJob)

    def events(self, job_id: str, *, following: bool) -> Iterator[StoredEvent]:
        """The history, and what is added to it."""
        self.job(job_id)
        if following:
            return self._follow(job_id)
        newest_first = self._pages(f"{_path(job_id)}/events", FineTuningEventList)
        return reversed([_event(event, job_id) for event in newest_first])

    def _follow(self, job_id: str) -> Iterator[StoredEvent]:
        """Events as they come. After a broken connection it goes on behind the last one that came."""
        last, broken_at = "", None
        while True:
            try:
                with self._source(job_id, last) as source:
                    broken_at = None
                    for sent in source:
                        if sent.data == "[DONE]":
                            return
                        event = self.decode(sent.data, FineTuningEvent)
                        last = sent.id
                        yield _event(event, job_id)
            except httpx2.SSEError as error:
                raise self.foreign(error) from error
            except (httpx2.HTTPError, Unavailable) as error:
                broken_at = broken_at or time.monotonic()
                if time.monotonic() - broken_at > GIVE_UP_SECONDS:
                    raise error if isinstance(error, Unavailable) else self.unreachable(error) from error
            time.sleep(RECONNECT_SECONDS)

    @contextmanager
    def _source(self, job_id: str, last: str) -> Iterator[httpx2.EventSource]:
        """The events behind the one with the id `last`, until the connection ends."""
        headers = {"last-event-id": last} if last else {}
        path, timeout = f"{_path(job_id)}/events", httpx2.Timeout(10.0, read=QUIET_SECONDS)
        with self.http.sse(path, params={"stream": "true"}, headers=headers, timeout=timeout) as source:
            if not source.response.is_success:
                source.response.read()
                raise self.error(source.response)
            yield source

    def _pages(self, path: str, kind: type[FineTuningJobList] | type[FineTuningEventList]) -> Iterator[Any]:
        """All that a list has, newest first."""
        after: dict[str, Any] = {}
        while True:
            page = self.call("GET", path, kind, params={"limit": PAGE} | after)
            yield from page.data
            if not page.has_more:
                return
            after = {"after": page.data[-1].id}

    def _upload(self, path: Path, uploaded: list[str]) -> str:
        with path.open("rb") as rows:
            form = {"data": {"purpose": "fine-tune"}, "files": {"file": (path.name, rows)}}
            uploaded.append(self.call("POST", "files", FileObject, **form).id)
        return uploaded[-1]

    def _create(self, body: dict[str, Any]) -> str:
        """Create a job; once more after a broken connection, which the key makes the same job."""
        options = {"json": body, "headers": {"idempotency-key": uuid.uuid4().hex}}
        try:
            return self.call("POST", "fine_tuning/jobs", FineTuningJob, **options).id
        except Unavailable:
            return self.call("POST", "fine_tuning/jobs", FineTuningJob, **options).id


def _path(job_id: str) -> str:
    if not _ID.fullmatch(job_id):
        raise NotFound(f"no job has the id {visible(job_id)!r}")
    return f"fine_tuning/jobs/{job_id}"


def _check(asked: TrainingOptions) -> None:
    """Refuse what the API has no words for."""
    if len(asked.data) > 1:
        raise InvalidInput("a job over HTTP has one training file: put the rows into one --data", param="data")
    if asked.device != "auto":
        raise InvalidInput("the device is the server's choice: leave --device out", param="device")
    for path in (*asked.data, *([asked.validation] if asked.validation else [])):
        if not path.is_file():
            raise InvalidInput(f"{path} is not a file that can be read", code="invalid_data")


def _body(asked: TrainingOptions, training: str, validation: str | None, *, priority: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": asked.base,
        "training_file": training,
        "validation_file": validation,
        "tunery": {
            "trainer": asked.method,
            "parameters": asked.parameters,
            "adapter": asked.adapter,
            "from": asked.parent,
            "alias": asked.alias,
            "allow": list(asked.allow),
            "force": asked.force,
            "priority": priority,
        },
    }
    return body | ({"method": {"type": "dpo"}} if asked.method == "dpo" else {})


def _view(job: FineTuningJob) -> JobView:
    more, error = job.tunery, job.error or JobError()
    return JobView(
        id=job.id,
        state=job.status,
        adapter=more.adapter,
        trainer=more.trainer,
        source="queue",
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        version=int(more.version.rpartition("@")[2]) if more.version else None,
        model=job.fine_tuned_model,
        error=error.message,
        code=error.code,
        waiting=more.waiting,
        priority=more.priority,
        base=more.base,
        data=(job.training_file,),
        validation=job.validation_file,
        parent=more.parent,
        alias=more.alias,
        step=more.step,
        steps=more.steps,
    )


def _event(event: FineTuningEvent, job_id: str) -> StoredEvent:
    data = dict(event.tunery)
    place = {"kind": data.pop("kind"), "number": data.pop("number"), "at": data.pop("at")}
    return StoredEvent(job=job_id, level=event.level, message=event.message, data=data, **place)
