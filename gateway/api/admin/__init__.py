"""`/admin/v1`: keys, adapters of all tenants, sharing, the audit log, tenants and the server, for the scope `admin`."""

from tunery.gateway.api.admin.adapters import (
    delete_version,
    drop_alias,
    list_all_adapters,
    move_alias,
    rollback_alias,
    show_adapter,
)
from tunery.gateway.api.admin.audit import list_audit
from tunery.gateway.api.admin.keys import create_key, list_keys, revoke_key, rotate_key
from tunery.gateway.api.admin.sharing import share_any_adapter, unshare_any_adapter
from tunery.gateway.api.admin.state import show_state
from tunery.gateway.api.admin.tenants import list_tenants

__all__ = ["ADMIN_HANDLERS"]

ADMIN_HANDLERS = (
    create_key,
    list_keys,
    rotate_key,
    revoke_key,
    list_all_adapters,
    show_adapter,
    move_alias,
    drop_alias,
    rollback_alias,
    delete_version,
    share_any_adapter,
    unshare_any_adapter,
    list_audit,
    list_tenants,
    show_state,
)
