"""Define the tables, portably between SQLite and Postgres."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
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
    "checkpoints",
    "batches",
    "data_files",
    "files",
    "identity",
    "job_events",
    "job_files",
    "jobs",
    "metadata",
    "model_names",
    "responses",
    "revision",
    "upload_parts",
    "uploads",
    "version_data",
    "versions",
    "webhook_deliveries",
    "webhook_endpoints",
    "webhook_events",
]

HEAD = "0013"
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

# A job that waits in the queue has a `request`; one that `tunery train` runs by itself has none. `fence` grows with every
# claim, and what a claimant writes counts only while its fence is the job's. `details` are the client's, kept for it.
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
    Column("tenant", String(64), nullable=False, server_default=""),
    Column("request", JSON(none_as_null=True)),
    Column("details", JSON(none_as_null=True)),
    Column("idempotency_key", String(255)),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("wanted", String(16)),
    Column("waiting", Text),
    Column("owner", String(200)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("code", String(64)),
    Column("progress", JSON(none_as_null=True)),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_idempotency_key", "tenant", "idempotency_key", unique=True),
)

# What happened in a job, numbered from 1 without gaps.
job_events = Table(
    "job_events",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    PrimaryKeyConstraint("job", "number"),
)

# The uploaded files that a job reads or wrote; `role` is train, held-out or result.
job_files = Table(
    "job_files",
    metadata,
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("file", String(64), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("position", Integer, nullable=False),
    PrimaryKeyConstraint("job", "role", "position"),
)

data_files = Table(
    "data_files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("details", Text),
    Column("findings", JSON(none_as_null=True)),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
)

# Names in OpenAI's form, ft:base:tenant:suffix:id, of versions that queued jobs made.
model_names = Table(
    "model_names",
    metadata,
    Column("name", String(400), primary_key=True),
    Column("adapter", String(130), nullable=False),
    Column("number", Integer, nullable=False),
    Column("job", String(64), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["adapter", "number"], ["versions.adapter", "versions.number"], ondelete="CASCADE"),
)

# What a job had trained at the end of an epoch, as files that can be served; `files` and `metrics` as in a version.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("name", String(400), nullable=False, unique=True),
    Column("adapter", String(130), nullable=False),
    Column("base", String(200), nullable=False),
    Column("base_digest", String(64), nullable=False),
    Column("method", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("files", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

# Responses of the Responses API that were to be stored. `body` is the whole answer, `items` the conversation before it.
responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Column("items", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False, index=True),
)

# A file that comes in parts, whose bytes are in the home's folder of uploads until it is completed, cancelled or expired.
# `parts` are the ids that completed it, in their order.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("mime_type", String(255), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("file_expires_after", Float),
    Column("status", String(16), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("parts", JSON(none_as_null=True)),
    Column("file", String(64)),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("upload", String(64), ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)

# Requests from a file that a gateway answers. `times` says when each state began. `fence` grows with every claim, as that
# of a job does; `ended` is whether the state is one of those in which a batch stays.
batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("input_file", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("ended", Boolean, nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("times", JSON, nullable=False),
    Column("adapters", JSON(none_as_null=True)),
    Column("key", String(16)),
    Column("details", JSON(none_as_null=True)),
    Column("output_expires_after", Float),
    Column("model", Text),
    Column("counts", JSON, nullable=False),
    Column("errors", JSON(none_as_null=True)),
    Column("output_file", String(64)),
    Column("error_file", String(64)),
    Column("owner", String(200)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
)

# What webhooks say, whoever is configured to hear it; numbers are never given out twice, so that `last_event` holds.
webhook_events = Table(
    "webhook_events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("type", String(64), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)

# The endpoints that servers are configured with; `last_event` is the last one that is no longer to be looked at.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("url", String(2000), primary_key=True),
    Column("last_event", Integer, nullable=False),
)

# `state` is pending, delivered or given_up; a pending one may be sent from `due_at` on, which whoever sends it defers.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("url", String(2000), ForeignKey("webhook_endpoints.url", ondelete="CASCADE"), nullable=False),
    Column("event", Integer, ForeignKey("webhook_events.number", ondelete="CASCADE"), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("error", Text),
    PrimaryKeyConstraint("url", "event"),
)

# One row: how many transactions have changed what others look at; see `Database.changes`.
revision = Table("revision", metadata, Column("number", BigInteger, nullable=False))
