"""The documentation page at /docs: the OpenAPI document as plain HTML.

Litestar's own render plugins load their scripts from a CDN; this one loads nothing, so it works without a network and
under a strict content security policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from litestar import Request
from litestar.openapi.plugins import OpenAPIRenderPlugin

__all__ = ["DocsPage"]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
code { font-family: ui-monospace, monospace; font-size: .9em }
summary { cursor: pointer; padding: .4rem 0 }
summary b { display: inline-block; min-width: 3.5rem }
details { border-top: 1px solid #8884 }
table { border-collapse: collapse; margin: .5rem 0 1rem; width: 100% }
td, th { border-top: 1px solid #8884; padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top }
"""


class DocsPage(OpenAPIRenderPlugin):
    """Renders every operation and every type on one page."""

    def __init__(self) -> None:
        super().__init__(path="/", favicon="", style="")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page."""
        info = openapi_schema["info"]
        title, spec = escape(info["title"]), escape(self.get_openapi_json_route(request))
        return "".join(
            [
                f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>",
                "<meta name='viewport' content='width=device-width'>",
                f"<style>{_STYLE}</style><h1>{title} {escape(info['version'])}</h1>",
                f"<p>{escape(info.get('description') or '')} OpenAPI: <a href='{spec}'>{spec}</a></p>",
                *_operations(openapi_schema),
                "<h2>Types</h2>",
                *_types(openapi_schema),
                "</html>",
            ]
        ).encode()


def _operations(document: dict[str, Any]) -> Iterator[str]:
    """Every operation, grouped by tag."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if isinstance(operation, dict):
                tag = (operation.get("tags") or ["other"])[0]
                by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag.capitalize())}</h2>"
        yield from operations


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    name = escape(operation.get("operationId") or "")
    body = operation.get("requestBody", {}).get("content", {})
    rows = [("Takes", _type(content.get("schema", {}))) for content in body.values()]
    rows += [
        (f"{code}", f"{escape(response.get('description') or '')} {_response_types(response)}")
        for code, response in operation.get("responses", {}).items()
    ]
    table = "".join(f"<tr><th>{label}</th><td>{text}</td></tr>" for label, text in rows)
    return (
        f"<details id='{name}'><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
        f"{escape(operation.get('summary') or '')}</summary>"
        f"<p>{escape(operation.get('description') or '')}</p><table>{table}</table></details>"
    )


def _response_types(response: dict[str, Any]) -> str:
    return ", ".join(_type(content.get("schema", {})) for content in (response.get("content") or {}).values())


def _types(document: dict[str, Any]) -> Iterator[str]:
    """Every named type with its fields."""
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        required = set(schema.get("required") or ())
        rows = "".join(
            f"<tr><td><code>{escape(field)}</code>{' *' if field in required else ''}</td><td>{_type(kind)}</td>"
            f"<td>{escape(_limits(kind))}</td></tr>"
            for field, kind in schema.get("properties", {}).items()
        )
        label = escape(name)
        yield f"<details id='{label}'><summary><code>{label}</code></summary>"
        yield f"<p>{escape(schema.get('description') or '')}</p><table>{rows}</table></details>"


def _type(schema: dict[str, Any]) -> str:
    """A type in a word or two, with a link if it has a name."""
    if reference := schema.get("$ref"):
        name = escape(reference.rsplit("/", 1)[-1])
        return f"<a href='#{name}'><code>{name}</code></a>"
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        return " or ".join(_type(choice) for choice in choices)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or {})}"
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in values)
    kind = schema.get("type") or "anything"
    return escape(" or ".join(kind) if isinstance(kind, list) else str(kind))


def _limits(schema: dict[str, Any]) -> str:
    """The bounds of a number or list, including those of each alternative."""
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
        "minItems": "items ≥",
        "maxItems": "items ≤",
    }
    choices = [schema, *(schema.get("oneOf") or schema.get("anyOf") or [])]
    return ", ".join(f"{sign} {choice[key]}" for choice in choices for key, sign in signs.items() if key in choice)
