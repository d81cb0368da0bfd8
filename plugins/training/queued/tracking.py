"""Hand a job's events to the trackers that its request names. Whatever a tracker does, the job goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.events import EventSink, JobEvent
from tunery.plugins.manager import Plugins
from tunery.registry.errors import TuneryError
from tunery.registry.jobs.history import Note
from tunery.registry.records import Job

__all__ = ["Tracking"]

log = logging.getLogger("tunery.jobs")


class Tracking:
    """The trackers of one job, an event sink. One that fails is left alone from then on, and `report` is called once."""

    def __init__(self, job: Job, plugins: Plugins, *, report: Callable[[Note], None]) -> None:
        self._job, self._plugins, self._report = job, plugins, report
        self._wanted = list((job.details or {}).get("integrations") or [])
        self._trackers: dict[str, EventSink] = {}
        self._started = False

    def __call__(self, event: JobEvent) -> None:
        """Take an event; the first one starts the trackers."""
        if not self._started:
            self._started = True
            for integration in self._wanted:
                self._guarded(integration["type"], lambda each=integration: self._start(each))  # type: ignore[misc]
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker(event))  # type: ignore[misc]

    def _start(self, integration: dict[str, object]) -> None:
        name = str(integration["type"])
        start = load_entrypoint(self._plugins.tracker(name).entrypoint)
        self._trackers[name] = start(self._job, integration[name])

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._trackers.pop(name, None)
            log.exception("%s hears nothing of %s any more", name, self._job.id)
            message = f"{name} gets no more events of this job: {type(error).__name__}: {error}"
            with suppress(TuneryError):  # the job has ended, or is another worker's
                self._report(Note(level="warn", kind="tracker_failed", message=message, data={"tracker": name}))
