"""Every expression of the dashboards and of the alerts, evaluated by a real Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.gateway.serve_process import TINY, ServeProcess, publish, random_loras, start_server
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry

DEPLOY = Path(__file__).parents[2] / "deploy"
PATIENCE = 180
VARIABLES = {"$instance": ".*", "$adapter": ".*", "$tenant": ".*", "$__rate_interval": "1m"}
METRIC = re.compile(r"\b(?:tunery_|vllm:)[a-z0-9_:]+|\bup\b")
NAMES = ("acme/support", "acme/support", "globex/tickets", "globex/damaged")
SETTINGS = ("--auth", "--max-batch", "2", "--max-waiting", "0", "--no-worker")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian: prometheus) is not installed"),
]


class Site:
    """A server with its keys, and the Prometheus that scrapes it."""

    def __init__(self, server: ServeProcess, registry: Registry, prometheus: str) -> None:
        self.server, self.registry = server, registry
        self.prometheus = httpx.Client(base_url=f"{prometheus}/api/v1", timeout=60)
        tokens = {
            tenant: registry.keys.create(tenant=tenant, scopes=("infer",), actor="test")[1]
            for tenant in ("acme", "globex")
        }
        self.tenants = {
            tenant: httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token}"}, timeout=120)
            for tenant, token in tokens.items()
        }

    def ask(self, tenant: str, model: str, *, tokens: int = 4) -> int:
        """The status of a request."""
        body = {"model": model, "prompt": "the quick brown", "max_tokens": tokens, "ignore_eos": True}
        return self.tenants[tenant].post("/v1/completions", json=body).status_code

    def values(self, expression: str) -> list[float]:
        """What an expression is now; what is no number is nothing to show."""
        try:
            response = self.prometheus.get("/query", params={"query": expression})
        except httpx.TransportError:
            return []
        if response.status_code == 503:
            return []
        answer: dict[str, Any] = response.json()
        assert answer["status"] == "success", (expression, answer)
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if not math.isnan(value)]

    def rules(self) -> list[dict[str, Any]]:
        """The state of every rule."""
        groups = self.prometheus.get("/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@pytest.fixture
def site(tmp_path: Path, tiny_base_folder: Path) -> Iterator[Site]:
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        base = resolve_base(str(tiny_base_folder), registry=registry, plugins=load_plugins(), name="base")
        publish(registry, base, random_loras(tmp_path, tiny_base_folder, len(NAMES)), name=NAMES.__getitem__)
        for alias, number in (("production", 1), ("canary", 2)):
            registry.move_alias("acme/support", alias, number, actor="test")
        _, token = registry.keys.create(tenant="ops", scopes=("metrics",), actor="test")
        with (
            start_server(tmp_path, home, "base", *TINY, *SETTINGS) as server,
            _prometheus(tmp_path, server, token) as url,
        ):
            site = Site(server, registry, url)
            yield site
            for client in (site.prometheus, *site.tenants.values()):
                client.close()


class _prometheus:
    """Prometheus with the shipped configuration, which asks the server every second."""

    def __init__(self, folder: Path, server: ServeProcess, token: str) -> None:
        shutil.copy(DEPLOY / "prometheus/alerts.yml", folder)
        (folder / "api.key").write_text(token)
        config = (DEPLOY / "prometheus/prometheus.yml").read_text()
        config = config.replace("gateway:8000", server.url.removeprefix("http://")).replace("15s", "1s")
        (folder / "prometheus.yml").write_text(config)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder

    def __enter__(self) -> str:
        options = {
            "config.file": self._folder / "prometheus.yml",
            "web.listen-address": self._address,
            "storage.tsdb.path": self._folder / "data",
        }
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", *(f"--{name}={value}" for name, value in options.items())], stdout=log, stderr=log
            )
        return f"http://{self._address}"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def panels() -> dict[str, str]:
    expressions = {}
    for path in DEPLOY.glob("grafana/dashboards/*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for name, value in VARIABLES.items():
                    expression = expression.replace(name, value)
                expressions[f"{path.stem}: {panel['title']}: {target['refId']}"] = expression
    return expressions


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_every_panel_has_data_after_traffic_and_every_alert_is_evaluated(site: Site) -> None:
    _damage(site.registry)
    _train(site.registry)
    deadline = time.monotonic() + PATIENCE
    while not site.values('count_over_time(tunery_adapter_loads_total{adapter="acme/support"}[1m]) > 2'):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # Whatever grows from here on has been seen at 0.
    assert site.ask("acme", "acme/support") == 200
    while 429 not in _crowd(site):
        """Each ended before the next one came."""
    assert site.ask("globex", "globex/damaged") == 500
    left = panels()
    while left := {name: each for name, each in left.items() if not site.values(each)}:
        assert time.monotonic() < deadline, f"nothing for {left}"
        for tenant, model in (("acme", "acme/support"), ("acme", "acme/support@canary"), ("globex", "globex/tickets")):
            assert site.ask(tenant, model) == 200
        site.ask("globex", "globex/damaged")
    for name in {name for expression in alerts().values() for name in METRIC.findall(expression)}:
        assert site.values(f"count({name})"), name
    firing = {"TuneryAdapterDamaged", "TuneryAdapterLoadFailures"}
    while not firing <= {rule["name"] for rule in site.rules() if rule["state"] == "firing"}:
        assert time.monotonic() < deadline, site.rules()
        time.sleep(0.2)
    assert {rule["name"]: rule["health"] for rule in site.rules()} == dict.fromkeys(alerts(), "ok")
    assert site.values('tunery_tenant_requests_total{tenant="acme",result="refused"}')[0] >= 1


def _crowd(site: Site) -> set[int]:
    """The statuses of more requests at once than there are places for."""
    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(lambda _: site.ask("acme", "acme/support", tokens=200), range(8)))


def _damage(registry: Registry) -> None:
    """Change bytes of an adapter's weights on the disk."""
    weights = registry.files(registry.version("globex/damaged", 1))["adapter_model.safetensors"]
    with weights.open("r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))


def _train(registry: Registry) -> None:
    """A job that failed, and one that runs and has measured what a job measures."""
    registry.start_job("job-1", adapter="acme/support", trainer="lora")
    registry.update_job("job-1", state="failed", error="bad rows", code="invalid_data")
    rows = registry.home.root / "rows.jsonl"
    rows.write_text("{}")
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(adapter="acme/new", trainer="lora", base=registry.bases()[0].digest, data=(file.id,))
    registry.queue.submit(request, tenant="acme")
    job = registry.queue.claim("test", lease=3600)
    assert job is not None
    progress = {"step": 2, "steps": 8, "loop_seconds": 3.0, "trained_tokens": 20, "train_loss": 2.0, "eval_loss": 2.5}
    registry.queue.report(Claim(job.id, job.fence), [], progress=progress)
