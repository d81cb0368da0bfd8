"""The database, the disks under it, and the keys."""

from __future__ import annotations

from dashboards.expressions import HERE, INSTANCE, quantiles, rate, total
from dashboards.panels import Dashboard, Panel, one, stat

__all__ = ["REGISTRY"]

REGISTRY = Dashboard(
    "tunery-registry",
    "Tunery: registry",
    "The database, the disks under it, and the keys.",
    (INSTANCE,),
    {
        "Health": (
            stat(
                "Readable",
                "short",
                "1 while every gateway can read the database.",
                total("tunery_registry_up", how="min"),
                (0.5, 1),
                below=True,
            ),
            stat(
                "Writable",
                "short",
                "1 while every gateway can change it.",
                total("tunery_registry_writable", how="min"),
                (0.5, 1),
                below=True,
            ),
            stat(
                "Disk free",
                "percentunit",
                "Of the fullest disk.",
                f"min (tunery_disk_free_bytes{{{HERE}}} / tunery_disk_size_bytes{{{HERE}}})",
                (0.1, 0.2),
                below=True,
            ),
            stat(
                "Keys expiring",
                "short",
                "Active keys that end within 14 days and were not replaced.",
                total("tunery_keys", HERE + ',state="expiring"', how="max"),
                (1,),
            ),
        ),
        "Database": (
            Panel(
                "Transactions",
                "s",
                "How long one takes, waiting for the lock included.",
                quantiles("tunery_registry_transaction_seconds", by="kind", shares=(0.5, 0.95)),
                (0.25, 1),
            ),
            Panel(
                "Transactions a second",
                "ops",
                "By kind.",
                one("{{kind}}", rate("tunery_registry_transaction_seconds_count", by="kind")),
            ),
            Panel(
                "Failures by code",
                "ops",
                "registry_busy: another process held the lock. registry_replaced: the file is gone.",
                one("{{code}}", rate("tunery_registry_failures_total", by="code")),
                (0.01, 0.1),
            ),
        ),
        "Disks and keys": (
            Panel(
                "Free space",
                "bytes",
                "Of the disks of the home and of the blobs, which may be one.",
                one("{{instance}} {{place}}", total("tunery_disk_free_bytes", by="instance, place", how="min")),
            ),
            Panel("API keys", "short", "By state.", one("{{state}}", total("tunery_keys", by="state", how="max"))),
            Panel(
                "Age of the keys in memory",
                "s",
                "Revocations since then do not count yet.",
                one("{{instance}}", total("tunery_keys_age_seconds", by="instance", how="max")),
                (2, 10),
            ),
        ),
    },
)
