"""Graders in a word, as the command line takes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tunery.registry.errors import InvalidInput, NotFound

__all__ = ["SHORT_FORMS", "grader_from_text"]

SHORT_FORMS = "exact, contains, icontains, similarity:METRIC>=NUMBER, json-schema:FILE"
_ANSWER, _REFERENCE = "{{sample.output_text}}", "{{item.reference}}"
_CHECKS = {"exact": "eq", "contains": "like", "icontains": "ilike"}
_SIMILARITY = re.compile(r"similarity:(\w+)>=(\d(?:\.\d+)?)")


def grader_from_text(text: str) -> list[dict[str, Any]]:
    """The graders that a short form or a JSON file of one grader, or a list of them, stands for.

    Raises InvalidInput for text that is neither, NotFound for a file that is not there.
    """
    if text in _CHECKS:
        return [
            {
                "type": "string_check",
                "name": text,
                "input": _ANSWER,
                "reference": _REFERENCE,
                "operation": _CHECKS[text],
            }
        ]
    if match := _SIMILARITY.fullmatch(text):
        return [
            {
                "type": "text_similarity", "name": match[1], "input": _ANSWER, "reference": _REFERENCE,
                "evaluation_metric": match[1], "pass_threshold": float(match[2]),
            }
        ]  # fmt: skip
    if text.startswith("similarity:"):
        raise InvalidInput(f"--grader {text!r}: write similarity:METRIC>=NUMBER, for example similarity:rouge_l>=0.6")
    if text.startswith("json-schema:"):
        path = Path(text.removeprefix("json-schema:"))
        return [{"type": "json_schema", "name": path.stem, "schema": _read(path, text)}]
    read = _read(Path(text), text)
    return read if isinstance(read, list) else [read]


def _read(path: Path, text: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(
            f"--grader {text!r} is no file and no short form; those are {SHORT_FORMS}", code="file_not_found"
        ) from error
    except OSError as error:
        raise InvalidInput(f"--grader {text!r} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"--grader {text!r} is not JSON: {error}") from error
