"""The result file of a job that succeeded: made from its events when it is first asked for."""

from __future__ import annotations

from tunery.gateway.api.jobs.presentation import results_csv
from tunery.registry.records import Job
from tunery.registry.registry import Registry
from tunery.registry.storage import leases

__all__ = ["result_files"]


def result_files(registry: Registry, job: Job) -> list[str]:
    """Ids of the job's result files; they are made where there are none yet."""
    known = registry.data_files.results_of(job.id)
    if known:
        return known
    events, number = [], 0
    while page := registry.queue.events_after(job.id, number):
        events += page
        number = page[-1].number
    with leases.staged(registry.home.staging, "results") as folder:
        path = folder / "step_metrics.csv"
        path.write_text(results_csv(events))
        registry.data_files.add_result(path, job=job, name="step_metrics.csv")
    return registry.data_files.results_of(job.id)
