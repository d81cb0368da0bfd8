"""Take a database back to what an older Tunery left."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

__all__ = ["before_identity"]

_STATEMENTS = """
DROP TABLE revision;
DROP TABLE usage_records;
DROP TABLE usage_hours;
DROP TABLE limit_overrides;
DROP TABLE limit_counters;
DROP TABLE limit_holds;
DROP TABLE audit_log;
DROP TABLE adapter_shares;
DROP TABLE api_keys;
DROP TABLE batches;
DROP TABLE upload_parts;
DROP TABLE uploads;
DROP TABLE checkpoints;
DROP TABLE version_evals;
DROP TABLE eval_items;
DROP TABLE eval_runs;
DROP TABLE evals;
DROP TABLE job_events;
DROP TABLE job_files;
DROP TABLE data_files;
DROP TABLE model_names;
DROP TABLE responses;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_endpoints;
DROP TABLE webhook_events;
CREATE TABLE older AS SELECT id, adapter, trainer, state, created_at, updated_at, version, error FROM jobs;
DROP TABLE jobs;
ALTER TABLE older RENAME TO jobs;
DROP TABLE identity;
UPDATE alembic_version SET version_num = '0003';
"""


def before_identity(path: Path) -> None:
    """As it was before registries had an id (migration 0003)."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(_STATEMENTS)
