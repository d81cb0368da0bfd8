"""A report as one HTML page that loads nothing. Everything from rows is escaped.

Written without a template engine: the page is a dozen tags, and the only loop that is not flat, nested figures, is a
recursive function.
"""

from __future__ import annotations

from html import escape
from typing import Any

from tunery.plugins.data.checks.report import DataReport, Finding
from tunery.plugins.hookspecs import Severity

__all__ = ["to_html"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere }
td.place { white-space: nowrap; overflow-wrap: normal }
code { font: 13px ui-monospace, monospace }
.error { color: #b00020 } .warning { color: #8a5a00 } .info { color: #3a5f8a }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616 } th, td { border-color: #383838 }
  .error { color: #ff7b8b } .warning { color: #e9b44c } .info { color: #8fb8e6 }
}
"""
_NAMES: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(report: DataReport) -> str:
    """The page: every finding that the report lists, and how many more there are."""
    counts = {name: report.count(severity) for severity, name in _NAMES.items()}
    summary = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
    if (more := sum(counts.values()) - len(report.findings)) > 0:
        summary += f"; {more} of them are only counted, as they repeat findings shown here"
    rows = "".join(map(_row, report.findings))
    head = "<tr><th>place</th><th>rule</th><th>what and how to fix it</th></tr>"
    findings = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if rows else "<p>Nothing was found.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data check</title><style>{_STYLE}</style></head><body>"
        f"<h1>Data check</h1><p>{summary}</p>{findings}<h2>Figures</h2>{_figures(report.statistics)}</body></html>\n"
    )


def _row(finding: Finding) -> str:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    return (
        f'<tr><td class="place">{_text(place)}<br><code>{_text(finding.path)}</code></td>'
        f'<td class="{finding.severity}">{_text(finding.rule)}<br>{finding.severity}</td>'
        f"<td>{_text(finding.message)}; {_text(finding.fix)}</td></tr>\n"
    )


def _figures(value: Any) -> str:
    """Nested figures as nested tables."""
    if isinstance(value, dict):
        cells = "".join(
            f"<tr><th>{_text(str(name))}</th><td>{_figures(item)}</td></tr>" for name, item in value.items()
        )
        return f"<table>{cells}</table>"
    if isinstance(value, list):
        return "".join(map(_figures, value))
    return _text(str(value))


def _text(text: str) -> str:
    """Escaped text, with what a page must not hold (NUL, half characters) as U+FFFD."""
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))
