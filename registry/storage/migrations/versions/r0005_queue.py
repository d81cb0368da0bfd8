"""Let jobs wait in a queue, keep their events, and keep files that were uploaded for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables, and give the jobs that are here what the queue needs to leave them alone."""
    op.create_table(
        "data_files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, index=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("details", sa.Text),
        sa.Column("findings", sa.JSON),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
    )
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("tenant", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("request", sa.JSON))
        jobs.add_column(sa.Column("details", sa.JSON))
        jobs.add_column(sa.Column("idempotency_key", sa.String(255)))
        jobs.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("wanted", sa.String(16)))
        jobs.add_column(sa.Column("waiting", sa.Text))
        jobs.add_column(sa.Column("owner", sa.String(200)))
        jobs.add_column(sa.Column("fence", sa.Integer, nullable=False, server_default="0"))
        jobs.add_column(sa.Column("lease_until", sa.Float))
        jobs.add_column(sa.Column("started_at", sa.Float))
        jobs.add_column(sa.Column("finished_at", sa.Float))
        jobs.add_column(sa.Column("code", sa.String(64)))
        jobs.add_column(sa.Column("progress", sa.JSON))
        jobs.create_index("ix_jobs_state", ["state"])
        jobs.create_index("ix_jobs_idempotency_key", ["tenant", "idempotency_key"], unique=True)
    op.create_table(
        "job_events",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("job", "number"),
    )
    op.create_table(
        "job_files",
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("file", sa.String(64), nullable=False, index=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("job", "role", "position"),
    )
    op.create_table(
        "model_names",
        sa.Column("name", sa.String(400), primary_key=True),
        sa.Column("adapter", sa.String(130), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("job", sa.String(64), nullable=False, index=True),
        sa.Column("step", sa.Integer),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
    )
