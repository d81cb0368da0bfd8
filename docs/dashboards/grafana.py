"""Writes dashboards as Grafana's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dashboards.panels import Dashboard, Panel, Query, Variable

__all__ = ["grafana_json"]

WIDTH, HEIGHT, STAT_HEIGHT = 24, 7, 4
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLOURS = ("green", "yellow", "red")


def grafana_json(dashboard: Dashboard) -> str:
    """The file of a dashboard."""
    return json.dumps(_dashboard(dashboard), indent=1) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["tunery"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 3,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["tunery"], "title": "Tunery", "asDropdown": True, "keepTime": True}],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "annotations": {"list": []},
        "panels": list(_panels(dashboard)),
    }


def _datasource() -> dict[str, Any]:
    current = {"text": "Prometheus", "value": "prometheus"}
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "current": current}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "definition": variable.query,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "sort": 1,
    }


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Rows with their panels side by side, so many as fit."""
    number, y = 1, 0
    for title, panels in dashboard.rows.items():
        yield {"id": number, "type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        number, y, x, height = number + 1, y + 1, 0, 0
        for panel in panels:
            width, tall = (4, STAT_HEIGHT) if panel.type == "stat" else (panel.width, HEIGHT)
            if x + width > WIDTH:
                x, y, height = 0, y + height, 0
            yield _panel(panel, number, {"x": x, "y": y, "w": width, "h": tall})
            number, x, height = number + 1, x + width, max(height, tall)
        y += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, **({"max": 1} if panel.unit == "percentunit" else {})}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.below:
        # What is too low is bad, so the colours go the other way.
        steps = [{"color": "red", "value": None}]
        steps += [
            {"color": colour, "value": value} for colour, value in zip(("yellow", "green"), panel.limits, strict=False)
        ]
    else:
        steps += [{"color": colour, "value": value} for colour, value in zip(COLOURS[1:], panel.limits, strict=False)]
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.type == "timeseries" and panel.limits:
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if panel.type == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background" if panel.limits else "value"}
    return {
        "id": number,
        "title": panel.title,
        "type": panel.type,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(query, letter) for query, letter in zip(panel.queries, "ABCDEFGH", strict=False)],
    }


def _target(query: Query, letter: str) -> dict[str, Any]:
    return {"refId": letter, "datasource": DATASOURCE, "expr": query.expression, "legendFormat": query.legend}
