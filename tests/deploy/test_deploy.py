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

from tunery.gateway.metrics.table import exposed_metrics
from tunery.registry.configuration.settings import read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:tunery_|vllm:)[a-z0-9_:]+")


def exposed() -> set[str]:
    """Every sample name that the gateway exposes."""
    names = set()
    for metric in exposed_metrics():
        names |= (
            {metric.name + part for part in ("_bucket", "_sum", "_count")}
            if metric.kind == "histogram"
            else {metric.name}
        )
    return names


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


def test_the_dashboards_show_every_metric_of_ours() -> None:
    ours = {name for name in exposed() if name.startswith("tunery_") and not name.endswith(("_sum", "_count"))}
    shown = {name for file, text in texts().items() if file.endswith(".json") for name in METRIC.findall(text)}
    assert ours - shown == set()


DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(DEPLOY.glob("grafana/dashboards/*.json"))}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_sound(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert (dashboard["uid"], dashboard["tags"]) == (name, ["tunery"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            check_panel(panel, variables)


def check_panel(panel: dict[str, Any], variables: set[str]) -> None:
    """It has expressions, a unit, a description, and limits that rise."""
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["targets"], panel["title"]
    assert defaults["unit"], panel["title"]
    assert panel["description"].endswith("."), panel["title"]
    limits = [step["value"] for step in defaults["thresholds"]["steps"]]
    assert limits[0] is None
    assert limits[1:] == sorted(limits[1:])
    for target in panel["targets"]:
        assert target["legendFormat"], panel["title"]
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables


def test_the_dashboards_find_their_source_and_each_other() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert provisioned["datasources"][0]["uid"] == "prometheus"
    for dashboard in DASHBOARDS.values():
        assert dashboard["links"][0]["tags"] == dashboard["tags"]


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_every_alert_has_its_place_in_the_runbook_and_the_runbook_no_other() -> None:
    sections = re.findall(r"^## (\w+)$", (DEPLOY.parent / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sections == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_runbook_says_what_it_means_where_to_look_what_to_do_and_when_to_escalate() -> None:
    _, *sections = re.split(r"^## ", (DEPLOY.parent / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        _, meaning, *rest = section.strip().split("\n\n")
        assert meaning
        assert [part.split("**")[1] for part in rest] == ["Look:", "Do:", "Escalate"], section


def test_every_alert_is_tested_quiet_and_firing() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts.test.yml").read_text())["tests"]
    seen = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert seen == {(name, fires) for name in alerts() for fires in (False, True)}


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
