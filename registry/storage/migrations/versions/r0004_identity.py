"""Give a registry an id, by which blobs of another registry are recognised."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table; the registry gets its id when it is opened next."""
    op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
