"""Every tenant that has anything, and how much that is."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, or_, select

from tunery.registry.names import tenant_of
from tunery.registry.storage import schema, tenant_tables

__all__ = ["Tenant", "count_tenants"]


class Tenant(msgspec.Struct, kw_only=True):
    """A tenant with its adapters, their versions, its active keys, its jobs that have not ended, and its uploaded
    files."""

    id: str
    adapters: int = 0
    versions: int = 0
    active_keys: int = 0
    unfinished_jobs: int = 0
    files: int = 0
    file_bytes: int = 0


def count_tenants(connection: Connection, *, at: float) -> list[Tenant]:
    """Everybody who has a key, an adapter, a queued job or a file, by name."""
    known: dict[str, Tenant] = {}

    def of(name: str) -> Tenant:
        return known.setdefault(name, Tenant(id=name))

    version, job, file, key = schema.versions.c, schema.jobs.c, schema.data_files.c, tenant_tables.api_keys.c
    for adapter, count in connection.execute(select(version.adapter, func.count()).group_by(version.adapter)):
        tenant = of(tenant_of(adapter))
        tenant.adapters, tenant.versions = tenant.adapters + 1, tenant.versions + count
    for name in connection.scalars(select(key.tenant).distinct()):
        of(name)
    active = key.revoked_at.is_(None) & or_(key.expires_at.is_(None), key.expires_at > at)
    for name, count in connection.execute(select(key.tenant, func.count()).where(active).group_by(key.tenant)):
        of(name).active_keys = count
    waiting = job.request.is_not(None) & job.state.in_(("queued", "running", "paused"))
    for name, count in connection.execute(select(job.tenant, func.count()).where(waiting).group_by(job.tenant)):
        of(name).unfinished_jobs = count
    sizes = select(file.tenant, func.count(), func.sum(file.size)).group_by(file.tenant)
    for name, count, size in connection.execute(sizes):
        of(name).files, of(name).file_bytes = count, size
    return [known[name] for name in sorted(known)]
