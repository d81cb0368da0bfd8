"""Keep what webhooks have to say, to whom, and how far each delivery is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "webhook_events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("url", sa.String(2000), primary_key=True),
        sa.Column("last_event", sa.Integer, nullable=False),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("url", sa.String(2000), sa.ForeignKey("webhook_endpoints.url", ondelete="CASCADE"), nullable=False),
        sa.Column(
            "event", sa.Integer, sa.ForeignKey("webhook_events.number", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("url", "event"),
    )
