"""Every expression of the dashboard and of the alerts, evaluated by a real Prometheus that scrapes a real gateway."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.api.conftest import Served
from tests.gateway.api.test_metrics import stats
from tunery.registry.errors import Unavailable
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest

DEPLOY = Path(__file__).parents[3] / "deploy"
PATIENCE = 120
VARIABLES = {"$instance": ".*", "$adapter": ".*", "$__rate_interval": "1m"}
COMPARED = re.compile(r"\s(?:==|>)\s[0-9.]+\s*$")

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@pytest.fixture
async def prometheus(served: Served, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The shipped configuration, asking this gateway every second."""
    shutil.copy(DEPLOY / "prometheus/alerts.yml", tmp_path)
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    config = config.replace("gateway:8000", served.url.removeprefix("http://")).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "api.key").write_text("unused")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1", timeout=20) as client:
            yield client
    finally:
        process.kill()
        process.wait()


async def values(prometheus: httpx.AsyncClient, expression: str) -> list[float]:
    """What an expression is now; what is no number is nothing to show."""
    try:
        response = await prometheus.get("/query", params={"query": expression})
    except httpx.TransportError:
        return []
    if response.status_code == 503:
        return []
    answer: dict[str, Any] = response.json()
    assert answer["status"] == "success", (expression, answer)
    values = [float(series["value"][1]) for series in answer["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


async def until(prometheus: httpx.AsyncClient, expressions: dict[str, str]) -> None:
    """Wait until every expression has a value."""
    left = dict(expressions)
    try:
        async with asyncio.timeout(PATIENCE):
            while left := {name: each for name, each in left.items() if not await values(prometheus, each)}:
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"nothing for {left}") from None


def panels() -> dict[str, str]:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/tunery.json").read_text())
    expressions = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            expressions[f"{panel['title']}: {target['refId']}"] = expression
    return expressions


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


async def test_every_panel_has_data_after_traffic_and_every_alert_something_to_compare(
    served: Served, prometheus: httpx.AsyncClient
) -> None:
    served.publish("acme/support")
    quiet = stats(loads={}, load_failures={}, evictions={}, hits={}, load_seconds=[])
    served.engine.report(quiet)
    # Whatever grows from here on has been seen at 0.
    await until(prometheus, {"seen": 'count_over_time(tunery_engine_up{job="tunery"}[1m]) > 2'})
    await _traffic(served)
    await until(prometheus, panels() | {name: COMPARED.sub("", each) for name, each in alerts().items()})
    assert await values(prometheus, alerts()["TuneryAdapterLoadFailures"]) != []
    assert max(await values(prometheus, panels()["Error share: A"])) > 0
    async with asyncio.timeout(PATIENCE):
        while {"TuneryAdapterLoadFailures", "TuneryErrors"} - await _alarmed(prometheus):
            await asyncio.sleep(0.2)


async def _traffic(served: Served) -> None:
    """Answers and failures; an adapter is loaded, one fails to, one is evicted; a job fails."""
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    for model in ("tiny", "acme/support"):
        await served.client.chat.completions.create(model=model, messages=messages)
    adapters = {"acme/support": 1}
    served.engine.report(
        stats(
            loads=adapters,
            load_failures=adapters,
            evictions=adapters,
            hits=adapters,
            load_seconds=[("acme/support", 0.02)],
        )
    )
    served.gateway.registry.start_job("job-1", adapter="acme/support", trainer="lora")
    served.gateway.registry.update_job("job-1", state="failed", error="bad rows", code="schema")
    _train_a_little(served)
    served.engine.failure = Unavailable("gone", code="engine_restarted")
    body = {"model": "tiny", "messages": messages}
    assert (await served.post("/v1/chat/completions", body)).status_code == 503


def _train_a_little(served: Served) -> None:
    """A job that runs, and has measured what a job measures."""
    registry = served.gateway.registry
    (served.folder / "rows.jsonl").write_text("{}")
    file = registry.data_files.add(served.folder / "rows.jsonl", tenant="acme", purpose="fine-tune", name="rows.jsonl")
    request = JobRequest(adapter="acme/new", trainer="lora", base=served.base.digest, data=(file.id,))
    registry.queue.submit(request, tenant="acme")
    job = registry.queue.claim("test", lease=3600)
    assert job is not None
    progress = {"step": 2, "steps": 8, "loop_seconds": 3.0, "trained_tokens": 20, "train_loss": 2.0, "eval_loss": 2.5}
    registry.queue.report(Claim(job.id, job.fence), [], progress=progress)


async def _alarmed(prometheus: httpx.AsyncClient) -> set[str]:
    answer = (await prometheus.get("/alerts")).json()
    return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"]}
