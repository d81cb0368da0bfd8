"""The audit log: who changed what, written in the transaction of the change and never altered."""

from tunery.registry.audit.entry import Action, record

__all__ = ["Action", "record"]
