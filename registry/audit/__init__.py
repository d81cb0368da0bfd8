"""The audit log: who changed what, written in the transaction of the change and never altered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunery.registry.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from tunery.registry.audit.entry import Action, record

__all__ = ["Action", "record"]

# Commands note who types them before they need the database.
__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "tunery.registry.audit.entry"))
