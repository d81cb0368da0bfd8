"""What is deployed, checked without deploying it: files parse, and every metric that they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.api.test_metrics import stats
from tunery.gateway.engine.fake import FakeEngine
from tunery.gateway.metrics.recorder import Metrics
from tunery.registry.jobs.counts import JobCounts, JobProgress
from tunery.registry.settings import read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:tunery_|vllm:)[a-z0-9_:]+")


def exposed() -> set[str]:
    """Every sample name that the gateway exposes once there has been a request."""
    metrics = Metrics()
    metrics.update_engine(FakeEngine().ready, stats())
    running = JobProgress(adapter="acme/bot", done=0.5, step_seconds=0.1, train_loss=2.0, eval_loss=2.5)
    metrics.update_jobs(
        JobCounts(states={"queued": 1}, failures={"schema": 1}, waiting_seconds=1.0, running=(running,))
    )  # fmt: skip
    metrics.update_batches({"completed": 1})
    for labelled in vars(metrics).values():
        names = getattr(labelled, "_labelnames", ())
        if names:
            labelled.labels(*["x" for _ in names])
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.name for family in families for sample in family.samples}


def texts() -> dict[str, str]:
    """Every file that names metrics."""
    files = [*DEPLOY.glob("prometheus/*.yml"), *DEPLOY.glob("grafana/dashboards/*.json")]
    return {path.name: path.read_text() for path in files}


def test_every_file_parses() -> None:
    for path in [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml")]:
        assert yaml.safe_load(path.read_text()), path
    for path in DEPLOY.rglob("*.json"):
        assert json.loads(path.read_text()), path


@pytest.mark.parametrize("name", sorted(texts()))
def test_every_metric_that_is_named_exists(name: str) -> None:
    known = exposed()
    named = set(METRIC.findall(texts()[name]))
    assert named or name == "prometheus.yml"
    assert named <= known, named - known


def test_the_dashboard_shows_every_metric_of_ours_that_is_worth_watching() -> None:
    ours = {
        name for name in exposed() if name.startswith("tunery_") and not name.endswith(("_created", "_sum", "_count"))
    }
    shown = set(METRIC.findall(texts()["tunery.json"]))
    assert ours - shown == set()


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_sound() -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/tunery.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(dashboard):
        assert panel["targets"], panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert provisioned["datasources"][0]["uid"] == "prometheus"


def test_compose_mounts_what_is_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {"gateway", "prometheus", "grafana"}
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
    assert (DEPLOY.parent / compose["services"]["gateway"]["build"]["dockerfile"]).exists()


def test_what_is_started_are_options_that_exist(tmp_path: Path) -> None:
    from tunery.gateway.cli.serve import serve

    options = {option for parameter in serve.params for option in parameter.opts}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]["command"]
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "systemd/tunery.service").read_text(), re.MULTILINE)
    image = re.search(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert unit is not None
    assert image is not None
    for command in (compose, unit[1].split()[1:], json.loads(image[1])):
        assert command[0] == "serve"
        assert {word for word in command if word.startswith("--")} <= options


def test_there_is_more_time_to_stop_than_to_drain(tmp_path: Path) -> None:
    drain = read_settings(tmp_path, environ={}).serve.drain_seconds
    unit = re.search(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "systemd/tunery.service").read_text(), re.MULTILINE)
    assert unit is not None
    assert int(unit[1]) > drain
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert int(compose["services"]["gateway"]["stop_grace_period"].rstrip("s")) > drain


def test_the_image_has_the_native_kernels_and_no_compiler() -> None:
    _, build, final = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")
    assert "build-essential" in build
    for kernels in ("native/_kernels*.so", "fused/_kernels*.so"):
        assert kernels in build  # or the build fails
    assert not re.search(r"build-essential|gcc", final)
    assert "COPY --from=build" in final
    assert "USER tunery" in final


def test_the_image_installs_what_constraints_name() -> None:
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    for name in re.findall(r"grep '\^([a-z0-9-]+)=='", (DEPLOY / "Dockerfile").read_text()):
        assert re.search(rf"^{name}==", pins, re.MULTILINE)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(
    "arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]], ids=["check", "test"]
)
def test_promtool_agrees(arguments: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_agrees() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "systemd/tunery.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    messages = [line for line in done.stderr.splitlines() if "tunery" in line and "not executable" not in line]
    assert messages == []
