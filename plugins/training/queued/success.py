"""What is recorded with a queued job's version."""

from __future__ import annotations

from tunery.registry import Version
from tunery.registry.jobs.history import Note
from tunery.registry.jobs.queue import Claim
from tunery.registry.jobs.success import Success
from tunery.registry.records import Job

__all__ = ["success_of"]


def success_of(job: Job, claim: Claim) -> Success:
    """The success of a claimed job: its version's name in OpenAI's form, and the last two events, in OpenAI's words."""
    name = job.request.model_name if job.request else None

    def notes(version: Version) -> list[Note]:
        data = {"version": version.name, "digest": version.digest}
        return [
            Note(kind="published", message=f"New fine-tuned model created: {name or version.name}", data=data),
            Note(kind="succeeded", message="The job has successfully completed", data=data),
        ]

    return Success(job=job.id, claim=claim, model_name=name, notes=notes)
