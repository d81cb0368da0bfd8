"""A registry has an id, so that blobs and database of different ones are told apart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table; whoever opens the registry next gives it its id."""
    op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
