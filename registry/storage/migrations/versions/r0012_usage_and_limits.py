"""Keep who used what, the limits of tenants and keys, and what is counted for them; count announced changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_SUMS = ("input_tokens", "cached_tokens", "output_tokens", "milliseconds")


def upgrade() -> None:
    """Make the tables, and the column for the key that made a batch."""
    number = op.create_table("revision", sa.Column("number", sa.BigInteger, nullable=False))
    op.bulk_insert(number, [{"number": 0}])
    op.add_column("batches", sa.Column("key", sa.String(16)))
    op.create_table(
        "usage_records",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
        *_subject(),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("outcome", sa.String(64), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger, nullable=False),
        *_subject(),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("requests", *_SUMS)),
        sa.PrimaryKeyConstraint("hour", "tenant", "key", "model", "digest", "endpoint", "batch"),
    )
    op.create_table(
        "limit_overrides",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key", sa.String(16), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", "name"),
    )
    op.create_table(
        "limit_counters",
        sa.Column("subject", sa.String(96), nullable=False),
        sa.Column("resource", sa.String(16), nullable=False),
        sa.Column("slot", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject", "resource", "slot"),
    )
    op.create_table(
        "limit_holds",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(96), nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("owner", "subject"),
    )


def _subject() -> tuple[sa.Column[str] | sa.Column[bool], ...]:
    return (
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key", sa.String(16), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(40), nullable=False),
        sa.Column("batch", sa.Boolean, nullable=False),
    )
