"""Define the tables of evaluations; see `schema`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from tunery.registry.storage.schema import metadata

__all__ = ["eval_items", "eval_runs", "evals", "version_evals"]

# `source` and `criteria` are OpenAI's data_source_config and testing_criteria, `details` the client's metadata.
evals = Table(
    "evals",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("source", JSON, nullable=False),
    Column("criteria", JSON, nullable=False),
    Column("details", JSON(none_as_null=True)),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

# `request` is what the client sent, for it to see; `plan` is what is done, with exact versions. A server claims a run as a
# worker does a job: what it writes counts only while its fence is the run's.
eval_runs = Table(
    "eval_runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("eval", String(64), ForeignKey("evals.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("request", JSON, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("details", JSON(none_as_null=True)),
    Column("data_name", Text, nullable=False),
    Column("data_sha256", String(64), nullable=False, index=True),
    Column("row_count", Integer, nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("owner", String(200)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("finished_at", Float),
    Column("error", Text),
    Column("code", String(64)),
    Column("summary", JSON(none_as_null=True)),
)

# The result of a row, for all models of the run; `position` counts the rows from 0, `state` is pass, fail or error.
eval_items = Table(
    "eval_items",
    metadata,
    Column("run", String(64), ForeignKey("eval_runs.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("state", String(8), nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("run", "position"),
)

# What finished runs measured of a version. It belongs to the version, and outlives the run.
version_evals = Table(
    "version_evals",
    metadata,
    Column("adapter", String(130), nullable=False),
    Column("number", Integer, nullable=False),
    Column("run", String(64), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("data_name", Text, nullable=False),
    Column("data_sha256", String(64), nullable=False),
    Column("against", Text),
    Column("results", JSON, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("adapter", "number", "run"),
    ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
)
