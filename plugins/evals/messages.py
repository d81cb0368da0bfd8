"""Messages with templates in them, as runs and judges have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunery.plugins.evals.template import Template, parse_template
from tunery.registry.errors import InvalidInput

__all__ = ["MessageTemplate"]

ROLES = ("system", "developer", "user", "assistant")
_TEXTS = ("text", "input_text", "output_text")
MAX_MESSAGES = 256


class MessageTemplate:
    """Messages whose texts are filled in; raise InvalidInput naming the one that is not text."""

    def __init__(self, messages: Sequence[Any], *, param: str) -> None:
        if not 0 < len(messages) <= MAX_MESSAGES:
            raise InvalidInput(f"{param} has {len(messages)} messages; write 1 to {MAX_MESSAGES}", param=param)
        self._messages = [_read(message, f"{param}[{at}]") for at, message in enumerate(messages)]

    @property
    def templates(self) -> list[Template]:
        """The templates of all messages."""
        return [template for _, template in self._messages]

    def fill(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The messages; raises as Template.fill."""
        return [{"role": role, "content": template.fill(context)} for role, template in self._messages]


def _read(message: Any, param: str) -> tuple[str, Template]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise InvalidInput(f"{param} must be a message whose role is one of {', '.join(ROLES)}", param=param)
    return role, parse_template(_text(message.get("content"), f"{param}.content"), param=f"{param}.content")


def _text(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(_part(part, param) for part in parts)


def _part(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _TEXTS or not isinstance(part.get("text"), str):
        raise InvalidInput(f"{param} must be text; {str(kind)[:50]!r} is not supported", param=param)
    text: str = part["text"]
    return text
