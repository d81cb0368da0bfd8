"""Compare the tokenizer and chat template that came with an adapter with its base's, which versions are served with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["COMPANIONS", "MAX_COMPANION", "differences"]

TEMPLATE, SETTINGS, TOKENIZER = "chat_template.jinja", "tokenizer_config.json", "tokenizer.json"
COMPANIONS = (TEMPLATE, "chat_template.json", SETTINGS, TOKENIZER)
"""Files that trainers save beside an adapter and that decide how a conversation becomes tokens."""

MAX_COMPANION = 64 * 2**20
"""Bytes; a larger file is not read."""

_SHOWN = 5


def differences(folder: Path, base: Path) -> list[str]:
    """A sentence for each way in which the template or tokenizer in `folder` differs from that of the base's folder."""
    warnings = (_template_differs(folder, base), _tokens_differ(folder, base))
    return [warning for warning in warnings if warning]


def _template_differs(folder: Path, base: Path) -> str | None:
    own, used = _template(folder), _template(base)
    if own is None or (used is not None and own.strip() == used.strip()):
        return None
    which = "another chat template than its base" if used is not None else "a chat template, and its base has none"
    return (
        f"it comes with {which}; chat requests are rendered with the base's. To serve it with its own, put the "
        "template into a copy of the base's folder, add that (tunery bases add FOLDER) and import on it"
    )


def _tokens_differ(folder: Path, base: Path) -> str | None:
    own, used = _tokens(folder), _tokens(base)
    if not own or not used:
        return None
    changed = sorted(text for text, number in own.items() if used.get(text) != number)
    if not changed:
        return None
    shown = ", ".join(repr(text) for text in changed[:_SHOWN])
    more = f" and {len(changed) - _SHOWN:,} more" if len(changed) > _SHOWN else ""
    return (
        f"its tokenizer has other ids than its base's for {len(changed):,} of its tokens ({shown}{more}), or its "
        "base's does not have them; requests are tokenized with the base's tokenizer"
    )


def _template(folder: Path) -> str | None:
    """The default chat template, wherever its version of transformers wrote it."""
    single = _text(folder / TEMPLATE)
    if single:
        return single
    template = _json(folder / SETTINGS).get("chat_template") or _json(folder / "chat_template.json").get(
        "chat_template"
    )
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _tokens(folder: Path) -> dict[str, int]:
    """Every token's id by its text, the added ones included."""
    tokenizer = _json(folder / TOKENIZER)
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    if isinstance(vocabulary, list):
        pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
        tokens = {text: number for number, text in enumerate(pieces) if isinstance(text, str)}
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            tokens[entry["content"]] = entry.get("id")
    return tokens


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    """A file's text; empty where there is none that can be read."""
    try:
        small = path.is_file() and path.stat().st_size <= MAX_COMPANION
        return path.read_text(encoding="utf-8", errors="replace") if small else ""
    except OSError:
        return ""
