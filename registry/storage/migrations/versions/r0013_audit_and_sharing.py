"""Keep an audit log, which cannot be changed afterwards, and which adapters are shared with whom."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_REFUSALS = {"update": "UPDATE", "delete": "DELETE"}


def upgrade() -> None:
    """Make the tables, and triggers that keep the log as it is."""
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("label", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True)),
        sa.Column("after", sa.JSON(none_as_null=True)),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "adapter_shares",
        sa.Column("adapter", sa.String(130), primary_key=True),
        sa.Column("tenants", sa.JSON, nullable=False),
        sa.Column("share_prefixes", sa.Boolean, nullable=False),
        sa.Column("shared_at", sa.Float, nullable=False),
        sa.Column("shared_by", sa.String(256), nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for name, event in _REFUSALS.items():
            op.execute(
                f"CREATE TRIGGER audit_log_no_{name} BEFORE {event} ON audit_log "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        # REPLACE deletes without a trigger of its own.
        op.execute(
            "CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log "
            "WHEN NEW.id IN (SELECT id FROM audit_log) "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
