"""The rule `turn_order`: conversations in an order that nobody has, because an export lost or moved a message."""

from __future__ import annotations

from collections.abc import Iterable

from tunery.plugins.data.checks.check import Check, Fault
from tunery.plugins.data.checks.parsed_record import ParsedRecord, message_path

__all__ = ["TurnOrder"]

_SYSTEM = ("system", "developer")


class TurnOrder(Check):
    """Answers without a question, and instructions in the middle of a conversation."""

    def check_record(self, record: ParsedRecord) -> Iterable[Fault]:
        if record.row is None:
            return
        roles = [message["role"] for message in record.row.messages]
        if "user" not in roles:
            yield Fault("$", "has no message of a user", "add what is answered, or drop the row")
        for index, role in enumerate(roles):
            if role in _SYSTEM and index > 0:
                yield Fault(
                    message_path(record, index),
                    f"is a {role} message that does not come first, which few chat templates show",
                    "put all instructions into one at the beginning",
                )
                return
