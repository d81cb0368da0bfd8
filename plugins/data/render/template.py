"""A base's Jinja chat template, compiled in a sandbox.

The environment is that of transformers' chat templates (trimmed blocks, loop controls, `tojson`, `raise_exception`,
`strftime_now`, an inert `generation` tag), so that a template renders here as it does there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser

from tunery.plugins.data.render.conversation import Message
from tunery.plugins.data.render.sandbox import BoundedEnvironment
from tunery.plugins.data.render.sandbox_limits import TemplateLimit
from tunery.registry.errors import InvalidInput

__all__ = ["ChatTemplate", "find_template"]

_RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
MAX_SOURCE = 2**20
"""Characters of a template: compiling one takes time and memory that are not bounded otherwise."""
_SHOWN = 500
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template may raise on messages that it does not expect."""
_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class _Generation(Extension):
    """`{% generation %}` marks assistant text for other tools; trained spans are found without it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template, with the special tokens that it may name.

    Raises InvalidInput where it does not compile.
    """

    def __init__(self, source: str, *, tokens: Mapping[str, str], now: Callable[[], datetime] = datetime.now) -> None:
        if len(source) > MAX_SOURCE:
            raise InvalidInput(
                f"the base's chat template has {len(source)} characters; the limit is {MAX_SOURCE}", code="bad_template"
            )
        self.source = source
        self._tokens = dict(tokens)
        self._now = now
        environment = self._environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.close_filters()
        environment.globals.update(raise_exception=_raise, strftime_now=self._strftime)
        try:
            self._template = environment.from_string(environment.bounded(environment.parse(source)))
            self._names = find_undeclared_variables(environment.parse(source))
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise InvalidInput(
                f"the base's chat template does not compile: {_short(error)}", code="bad_template"
            ) from error

    @property
    def sha256(self) -> str:
        """SHA-256 of the source, in hex."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def variables(self) -> frozenset[str]:
        """Variables that the template reads and a request may set: neither the conversation nor the names of tokens."""
        return frozenset(self._names - _RESERVED - self._tokens.keys() - {f"{kind}_token" for kind in _TOKENS})

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Raises InvalidInput with the template's own message where it refuses, or exceeds a bound.
        """
        names = {**self._tokens, **(options or {})}
        try:
            with self._environment.budget():
                return self._template.render(
                    messages=list(messages),
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **names,
                )
        except TemplateLimit as error:
            raise InvalidInput(
                f"the base's chat template ({self.sha256[:12]}) exceeds {error} with these messages; send fewer or "
                "shorter ones, or use a base with a simpler template",
                code="template_limit",
                param="messages",
            ) from error
        except _REFUSALS as error:
            roles = _short(", ".join(str(message.get("role")) for message in messages) or "none")
            raise InvalidInput(
                f"the base's chat template refuses these messages (roles: {roles}): {_short(error)}",
                code="template_refused",
                param="messages",
            ) from error

    def _strftime(self, pattern: str) -> str:
        if len(pattern) > _SHOWN:
            raise TemplateLimit(f"{_SHOWN} characters of a date's format")
        return self._now().strftime(pattern)


def find_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The default chat template in a base's folder, wherever its version of transformers wrote it, or None."""
    single = folder / "chat_template.jinja"
    if single.is_file():
        return single.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    legacy = folder / "chat_template.json"
    if source is None and legacy.is_file():
        source = json.loads(legacy.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which would put different tokens before the model.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _short(message: object) -> str:
    """A template's message, shortened to fit into an error."""
    text = str(message)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
