"""Options of `tunery serve`, `train` and `bench` are the settings' fields: names, defaults and help."""

from __future__ import annotations

import msgspec
import pytest
import rich_click as click

from tunery.gateway.bench.settings import EngineSettings, NeighbourSettings, TrainingRunSettings, Workload
from tunery.gateway.cli.bench import bench
from tunery.gateway.cli.reproduce import reproduce
from tunery.gateway.cli.serve import serve
from tunery.gateway.cli.terminal.options import read_options
from tunery.gateway.cli.train import train
from tunery.registry.configuration.settings import ServeSettings, Settings, TrainingSettings, read_settings
from tunery.registry.errors import InvalidInput
from tunery.registry.home import Home
from tunery.registry.values import describe_fields


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (serve, ServeSettings),
        (train, TrainingSettings),
        (reproduce, TrainingSettings),
        (bench.commands["serve"], EngineSettings),
        (bench.commands["serve"], Workload),
    ],
)
def test_every_setting_is_an_option_with_its_default_in_the_help(
    command: click.Command, settings: type[msgspec.Struct]
) -> None:
    given = command.make_context("it", ["acme/tone@1"] if command is reproduce else []).params
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    for field in msgspec.structs.fields(settings):
        option = options[field.name]
        assert given[field.name] is None  # or it would win over the environment and the file
        assert f"--{field.name.replace('_', '-')}" in option.opts
        assert option.help
        if field.default not in (False, True, ()) and field.default_factory is msgspec.NODEFAULT:
            assert option.help.endswith(f"  [default: {field.default}]")


BENCHMARKS = [EngineSettings, NeighbourSettings, TrainingRunSettings, Workload]


def test_every_setting_says_what_it_is_for() -> None:
    for kind in [*(section.type for section in msgspec.structs.fields(Settings)), *BENCHMARKS]:
        for field in describe_fields(kind):
            assert field.description.endswith((".", "…")), field.name


def test_options_of_a_benchmark_are_read_into_its_settings() -> None:
    given = bench.commands["serve"].make_context("serve", ["--rank", "8", "--quant", "int8", "--suite"]).params
    assert read_options(Workload, given) == Workload(rank=8)
    assert read_options(EngineSettings, given) == EngineSettings(quant="int8")
    with pytest.raises(InvalidInput, match="--rank=0: --rank is a whole number, at least 1"):
        read_options(Workload, {"rank": 0})
    with pytest.raises(InvalidInput, match="--quant='nf5': did you mean 'nf4'"):
        read_options(EngineSettings, {"quant": "nf5"})


def test_options_that_are_not_given_leave_a_setting_to_the_environment_and_the_file(home: Home) -> None:
    context = serve.make_context("serve", ["--max-batch", "4", "--no-prefix-cache", "--preload", "acme/a,acme/b"])
    environment = {"TUNERY_SERVE_PORT": "1", "TUNERY_SERVE_MAX_BATCH": "9"}
    settings = read_settings(home.root, environ=environment, overrides={"serve": context.params}).serve
    assert settings == ServeSettings(port=1, max_batch=4, prefix_cache=False, preload=("acme/a", "acme/b"))
