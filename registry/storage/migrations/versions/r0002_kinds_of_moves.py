"""Every move of an alias says what kind it was, so that no reason a user writes can be taken for a rollback."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the kind, and tell it for the moves already made from what the first tables kept."""
    op.add_column("alias_moves", sa.Column("kind", sa.String(16), nullable=False, server_default="move"))
    moves = sa.table("alias_moves", sa.column("kind"), sa.column("reason"), sa.column("after"))
    op.execute(moves.update().where(moves.c.reason == "rollback").values(kind="rollback"))
    op.execute(moves.update().where(moves.c.reason == "published").values(kind="publish"))
    op.execute(moves.update().where(moves.c.after.is_(None)).values(kind="drop"))
