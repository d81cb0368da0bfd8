"""Define the tables of tenants: their keys, what they use and may use, and who changed what; see `schema`."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Integer, PrimaryKeyConstraint, String, Table, Text

from tunery.registry.storage.schema import metadata

__all__ = [
    "adapter_shares",
    "api_keys",
    "audit_log",
    "limit_counters",
    "limit_holds",
    "limit_overrides",
    "usage_hours",
    "usage_records",
]

# Who used what, a row a request, for so many days; `number` grows with every row. `key` is "" where no key was used.
usage_records = Table(
    "usage_records",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("tenant", String(64), nullable=False),
    Column("key", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("endpoint", String(40), nullable=False),
    Column("batch", Boolean, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("outcome", String(64), nullable=False),
    sqlite_autoincrement=True,
)

# The sums of those, by the hour, written with them and kept; `hour` is its first Unix second.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("hour", BigInteger, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("endpoint", String(40), nullable=False),
    Column("batch", Boolean, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "tenant", "key", "model", "digest", "endpoint", "batch"),
)

# Limits that differ from the configured ones; `key` is "" for those of the whole tenant.
limit_overrides = Table(
    "limit_overrides",
    metadata,
    Column("tenant", String(64), nullable=False),
    Column("key", String(16), nullable=False),
    Column("name", String(40), nullable=False),
    Column("value", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("actor", String(256), nullable=False),
    PrimaryKeyConstraint("tenant", "key", "name"),
)

# What was admitted lately, for gateways that share their limits; see `limits.counters`.
limit_counters = Table(
    "limit_counters",
    metadata,
    Column("subject", String(96), nullable=False),
    Column("resource", String(16), nullable=False),
    Column("slot", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
    PrimaryKeyConstraint("subject", "resource", "slot"),
)

# Concurrent requests that a gateway holds room for until `until`, which it renews.
limit_holds = Table(
    "limit_holds",
    metadata,
    Column("owner", String(64), nullable=False),
    Column("subject", String(96), nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("until", Float, nullable=False),
    PrimaryKeyConstraint("owner", "subject"),
)

# API keys. Of a key's secret only the SHA-256 is kept; `adapters` are patterns of the adapters that it may use.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("label", String(128), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("adapters", JSON, nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(256), nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("replaced_by", String(16)),
)

# Who changed what. Triggers of the database refuse to change or delete a row; ids are never given out twice.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("actor", String(256), nullable=False),
    Column("label", String(128), nullable=False),
    Column("action", String(32), nullable=False),
    Column("target", Text, nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("request_id", String(128), nullable=False),
    Column("source", String(64), nullable=False),
    sqlite_autoincrement=True,
)

# The adapters that other tenants may ask; `tenants` are those, or ["all"].
adapter_shares = Table(
    "adapter_shares",
    metadata,
    Column("adapter", String(130), primary_key=True),
    Column("tenants", JSON, nullable=False),
    Column("share_prefixes", Boolean, nullable=False),
    Column("shared_at", Float, nullable=False),
    Column("shared_by", String(256), nullable=False),
)
