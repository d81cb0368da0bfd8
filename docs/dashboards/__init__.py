"""The Grafana dashboards of deploy/grafana/dashboards, declared as rows of panels; docs/generate.py writes them."""

from __future__ import annotations

from collections.abc import Callable

from dashboards.adapters import ADAPTERS
from dashboards.canaries import CANARIES
from dashboards.grafana import grafana_json
from dashboards.jobs import JOBS
from dashboards.panels import Dashboard
from dashboards.serving import LATENCY, TRAFFIC
from dashboards.storage import REGISTRY
from dashboards.tenants import TENANTS

__all__ = ["dashboard_files"]

DASHBOARDS = (TRAFFIC, LATENCY, TENANTS, ADAPTERS, JOBS, CANARIES, REGISTRY)


def dashboard_files() -> dict[str, Callable[[], str]]:
    """What is in each file, by its path from docs/."""
    return {f"../deploy/grafana/dashboards/{each.uid}.json": _writer(each) for each in DASHBOARDS}


def _writer(dashboard: Dashboard) -> Callable[[], str]:
    return lambda: grafana_json(dashboard)
