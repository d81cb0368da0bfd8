"""Training jobs, batches and webhooks."""

from __future__ import annotations

from dashboards.expressions import HERE, INSTANCE, rate, total
from dashboards.panels import Dashboard, Panel, Query, one

__all__ = ["JOBS"]

JOBS = Dashboard(
    "tunery-jobs",
    "Tunery: jobs",
    "Training jobs, batches and webhooks. Every gateway counts those of the whole registry.",
    (INSTANCE,),
    {
        "Training jobs": (
            Panel(
                "Jobs",
                "short",
                "By state, those that succeeded left out.",
                one("{{state}}", total("tunery_jobs", HERE + ',state!="succeeded"', by="state", how="max")),
            ),
            Panel(
                "Failed jobs by code",
                "short",
                "All that are in the registry; `tunery jobs logs JOB` says what each one met.",
                one("{{code}}", total("tunery_jobs_failed", by="code", how="max")),
            ),
            Panel(
                "Age of the queue",
                "s",
                "How long the oldest job has waited.",
                one("waiting", total("tunery_job_waiting_seconds", how="max")),
                (600, 3600),
            ),
            Panel(
                "Quietest running job",
                "s",
                "How long it has reported nothing; steps take seconds, long evaluations minutes.",
                one("silent", total("tunery_job_silent_seconds", how="max")),
                (300, 900),
            ),
            Panel(
                "Running jobs: share done",
                "percentunit",
                "By adapter.",
                one("{{adapter}}", total("tunery_job_done_ratio", by="adapter", how="max")),
            ),
            Panel(
                "Running jobs: seconds a step",
                "s",
                "By adapter.",
                one("{{adapter}}", total("tunery_job_step_seconds", by="adapter", how="max")),
            ),
            Panel(
                "Losses of running jobs",
                "none",
                "By adapter; held-out loss that rises while training loss falls is overfitting.",
                (
                    Query("{{adapter}} training", total("tunery_job_train_loss", by="adapter", how="max")),
                    Query("{{adapter}} held out", total("tunery_job_eval_loss", by="adapter", how="max")),
                ),
            ),
            Panel(
                "Trained tokens",
                "short",
                "Of all jobs in the registry, so far.",
                one("tokens", total("tunery_trained_tokens", how="max")),
            ),
        ),
        "Batches": (
            Panel(
                "Batches by state",
                "short",
                "Those that completed left out.",
                one("{{state}}", total("tunery_batches", HERE + ',state!="completed"', by="state", how="max")),
            ),
            Panel(
                "Requests of batches",
                "reqps",
                "What these gateways answered.",
                one("{{outcome}}", rate("tunery_batch_requests_total", by="outcome")),
            ),
        ),
        "Webhooks": (
            Panel(
                "Attempts by outcome",
                "ops",
                "retried ones are sent again later; given_up ones never.",
                one("{{outcome}}", rate("tunery_webhook_attempts_total", by="outcome")),
            ),
            Panel(
                "Pending webhooks",
                "short",
                "Waiting to be sent, or sent again.",
                one("pending", total("tunery_webhooks_pending", how="max")),
                (10, 100),
            ),
            Panel(
                "Age of the oldest webhook",
                "s",
                "How long ago its event was.",
                one("oldest", total("tunery_webhooks_oldest_seconds", how="max")),
                (600, 3600),
            ),
        ),
    },
)
