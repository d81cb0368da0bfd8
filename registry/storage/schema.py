"""Define the tables, portably between SQLite and Postgres."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

__all__ = [
    "HEAD",
    "adapters",
    "alias_moves",
    "aliases",
    "bases",
    "files",
    "identity",
    "jobs",
    "metadata",
    "version_data",
    "versions",
]

HEAD = "0004"
"""The migration this code is written for."""

metadata = MetaData()

# One row: which registry this is, as the marker beside its blobs says too.
identity = Table("identity", metadata, Column("id", String(32), primary_key=True))

bases = Table(
    "bases",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("source", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("added_at", Float, nullable=False),
)

# `last_number` is the highest number ever given out, so that a removed version's number is never reused.
adapters = Table(
    "adapters",
    metadata,
    Column("name", String(130), primary_key=True),
    Column("last_number", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("adapter", String(130), ForeignKey("adapters.name"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("base", String(200), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("method", String(64), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("adapter", "number"),
)

files = Table(
    "files",
    metadata,
    Column("adapter", String(130), nullable=False),
    Column("number", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    PrimaryKeyConstraint("adapter", "number", "path"),
    ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
)

# `role` is train or held-out; `position` is the file's place in the manifest.
version_data = Table(
    "version_data",
    metadata,
    Column("adapter", String(130), nullable=False),
    Column("number", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    PrimaryKeyConstraint("adapter", "number", "position"),
    ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter", String(130), nullable=False),
    Column("alias", String(63), nullable=False),
    Column("number", Integer, nullable=False),
    PrimaryKeyConstraint("adapter", "alias"),
    ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"]),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("adapter", String(130), nullable=False, index=True),
    Column("alias", String(63), nullable=False),
    Column("before", Integer),
    Column("after", Integer),
    Column("moved_at", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("kind", String(16), nullable=False, server_default="move"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("adapter", String(130), nullable=False),
    Column("trainer", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("version", Integer),
    Column("error", Text),
)
