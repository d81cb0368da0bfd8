"""One tree from a file, the environment and the command; every problem reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.registry.configuration.settings import ServeSettings, read_settings
from tunery.registry.errors import InvalidInput


def test_the_command_wins_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[serve]\nport = 1\nhost = "0.0.0.0"\nmax_batch = 5\n')
    environment = {"TUNERY_SERVE_PORT": "2", "TUNERY_SERVE_MAX_BATCH": "6", "TUNERY_HOME": "x", "OTHER": "y"}
    settings = read_settings(tmp_path, environ=environment, overrides={"serve": {"port": 3, "host": None}})
    assert (settings.serve.port, settings.serve.max_batch, settings.serve.host) == (3, 6, "0.0.0.0")
    assert settings.serve.quant == "nf4"


def test_without_anything_there_are_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path, environ={}).serve == ServeSettings()


def test_every_problem_is_reported_together(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[serve]\nprot = 1\nquant = "nf5"\n[train]\nx = 1\n')
    environment = {"TUNERY_SERVE_PORT": "99999", "TUNERY_NONSENSE": "1"}
    with pytest.raises(InvalidInput) as caught:
        read_settings(tmp_path, environ=environment)
    for message in ("serve.prot", "did you mean 'serve.port'", "'nf5'", "section 'train'", "99999", "TUNERY_NONSENSE"):
        assert message in caught.value.message


@pytest.mark.parametrize("text", ["[serve", "serve = 3\n", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        read_settings(tmp_path, environ={})


def test_lists_and_tables_are_written_in_toml_or_with_commas(tmp_path: Path) -> None:
    written = '[serve]\npreload = ["acme/tone", "acme/facts@3"]\ntenant_weights = {acme = 2, globex = 0.5}\n'
    (tmp_path / "config.toml").write_text(written)
    from_file = read_settings(tmp_path, environ={}).serve
    environment = {
        "TUNERY_SERVE_PRELOAD": "acme/tone, acme/facts@3",
        "TUNERY_SERVE_TENANT_WEIGHTS": "acme=2, globex=0.5,",
        "TUNERY_SERVE_PREFIX_CACHE": "true",
    }
    assert read_settings(tmp_path / "none", environ=environment).serve == from_file
    assert from_file.preload == ("acme/tone", "acme/facts@3")
    assert from_file.tenant_weights == {"acme": 2.0, "globex": 0.5}
    assert read_settings(tmp_path, environ={"TUNERY_SERVE_PRELOAD": ""}).serve.preload == ()


@pytest.mark.parametrize("given", ["acme", "acme=0", "acme=-1", "acme=x", "acme=nan", "acme=inf", "acme=1=2"])
def test_a_weight_that_is_no_share_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(InvalidInput, match=r"serve\.tenant_weights"):
        read_settings(tmp_path, environ={"TUNERY_SERVE_TENANT_WEIGHTS": given})


def service_links(service: str, address: str = "10.96.0.17", port: int = 8000) -> dict[str, str]:
    """What Kubernetes puts into every pod for a Service with one named port."""
    name, url = service.upper().replace("-", "_"), f"tcp://{address}:{port}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        f"{name}_PORT_{port}_TCP": url,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": address,
    }


@pytest.mark.parametrize("service", ["tunery", "tunery-serve", "tunery-home", "tunery-v2-canary"])
@pytest.mark.parametrize("address", ["10.96.0.17", "fd00:10:96::a"])
def test_variables_of_a_kubernetes_service_are_no_settings(tmp_path: Path, service: str, address: str) -> None:
    links = service_links(service, address)
    assert read_settings(tmp_path, environ=links).serve == ServeSettings()
    assert read_settings(tmp_path, environ=links | {"TUNERY_SERVE_THREADS": "2"}).serve.threads == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TUNERY_PORT", "8000"),
        ("TUNERY_SERVE_PORT", "http://10.0.0.1:8000"),
        ("TUNERY_SERVICE_HOST", "localhost"),
        ("TUNERY_SERVICE_PORT", "http"),
        ("TUNERY_PORT_HTTP_TCP", "tcp://10.0.0.1:8000"),
        ("TUNERY_SERVE_PORTS", "tcp://10.0.0.1:8000"),
    ],
)
def test_what_only_looks_like_one_is_an_error_as_before(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=r"no such variable|unknown setting|serve\.port"):
        read_settings(tmp_path, environ={name: value})
