"""The command line's frame: near names, exit codes, tracebacks only when asked for, plugins'
commands, light imports."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import Any

import click
import pytest

from tunery.gateway.cli import COMMANDS, cli, main
from tunery.gateway.cli.terminal.errors import EXIT_CODES, exit_code
from tunery.plugins.hookspecs import hookimpl
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import describe_parameters
from tunery.plugins.trainers import LoraParameters
from tunery.registry import errors
from tunery.registry.home import Home


@pytest.fixture(autouse=True)
def at_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_HOME", str(home.root))


def run(*arguments: str) -> int:
    """The exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_every_error_has_the_exit_code_of_its_nearest_kind() -> None:
    expected = {
        "InvalidInput": 2,
        "InvalidData": 2,
        "UnknownName": 2,
        "NotFound": 3,
        "Conflict": 4,
        "ArtifactRefused": 5,
        "Unavailable": 6,
        "Overloaded": 6,
        "LimitReached": 6,
        "StorageFailed": 7,
        "StorageBusy": 7,
        "JobPaused": 8,
        "TrainingFailed": 9,
        "TuneryError": 1,
        "JobCancelled": 130,
    }
    kinds: list[Any] = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    assert {kind.__name__: exit_code(kind.__new__(kind)) for kind in kinds} == expected
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_help_names_every_command_and_its_short_text_is_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert name in shown
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert text


def test_a_mistyped_command_is_answered_with_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("adaptors") == 2
    assert "did you mean 'adapters'" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"tunery, version {version('tunery')}"


def test_an_error_is_one_line_and_a_traceback_only_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("adapters", "show", "acme/none") == 3
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: acme/none does not exist")
    assert stderr.count("\n") == 1
    for arguments, variable in ((["--debug"], "0"), ([], "1")):
        monkeypatch.setenv("TUNERY_DEBUG", variable)
        with pytest.raises(errors.NotFound):
            main([*arguments, "adapters", "show", "acme/none"])


def test_every_problem_of_the_data_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [f"rows.jsonl:{n}: is wrong" for n in range(1, 31)]

    def fail(**_: object) -> None:
        raise errors.InvalidData("30 problems", problems=problems, advice=["fix them"])

    monkeypatch.setattr(cli, "main", fail)
    assert run("plugins") == 2
    assert capsys.readouterr().err.splitlines() == ["error: 30 problems", *problems, "fix them"]


def test_a_plugins_command_is_listed_suggested_and_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def register_commands(cli: click.Group) -> None:
        @cli.command("greet", short_help="Say hello.")
        def greet() -> None:
            click.echo("hello from afar")

        @cli.command("serve")
        def serve() -> None:
            click.echo("not the server")

    plugins = Plugins()
    plugins.add(types.SimpleNamespace(register_commands=hookimpl(register_commands)), "greeter")
    monkeypatch.setattr("tunery.gateway.cli.terminal.context.plugins", lambda: plugins)
    monkeypatch.setattr(cli, "commands", {})
    with caplog.at_level(logging.WARNING):
        assert run("--help") == 0
    assert "Say hello." in capsys.readouterr().out
    assert "greeter may not replace the command 'serve'" in caplog.text
    assert run("greeet") == 2
    assert "did you mean 'greet'?" in capsys.readouterr().err
    assert run("greet") == 0
    assert capsys.readouterr().out == "hello from afar\n"
    assert run("serve", "--help") == 0
    assert "OpenAI-compatible" in capsys.readouterr().out


def test_plugins_are_listed_with_what_they_hook(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plugins", "--json") == 0
    listed = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert listed["trainers"]["hooks"] == ["register_trainers"]
    assert {"name", "distribution", "version", "hooks", "error"} <= set(listed["bases"])
    assert run("plugins", "--trainers", "--json") == 0
    assert {"full", "lora", "qlora"} <= {trainer["name"] for trainer in json.loads(capsys.readouterr().out)}
    assert run("plugins", "--trainer", "lora") == 0
    assert "learning_rate\tauto\ta number, more than 0\tthe optimizer's step size" in capsys.readouterr().out
    assert run("plugins", "--trainer", "lorra") == 2


def test_a_base_is_added_and_listed(capsys: pytest.CaptureFixture[str], tiny_base_folder: Path) -> None:
    assert run("bases", "add", str(tiny_base_folder), "--name", "tiny", "--json") == 0
    answered = capsys.readouterr()
    assert f"copied from the folder {tiny_base_folder}" in answered.err
    added = json.loads(answered.out)
    assert run("bases", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [added]
    assert run("bases", "list") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"tiny\t{added['digest'][:12]}\t")
    assert run("bases", "add", "tinny") == 2
    assert "did you mean 'tiny'?" in capsys.readouterr().err


def test_a_parameter_that_is_given_another_default_keeps_its_description() -> None:
    class Halved(LoraParameters, frozen=True, kw_only=True):
        """LoRA's, with half its rank."""

        r: int = 8

    fields = {each.name: each for each in describe_parameters(Halved)}
    assert (fields["r"].default, fields["r"].description) == (8, "LoRA rank")


@pytest.mark.parametrize("trainer", ["lora", "qlora", "full", "dpo"])
def test_what_plugins_says_of_a_parameter_is_what_the_documentation_says(
    trainer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plugins", "--trainer", trainer, "--json") == 0
    (schema,) = json.loads(capsys.readouterr().out)["$defs"].values()
    shown = schema["properties"]
    assert all(each["description"] for each in shown.values())
    table = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text().split("<!-- parameters -->")[1]
    header, _, *rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line
    ]
    documented = {row[0]: row for row in rows}
    for name, each in shown.items():
        assert documented[name][header.index(trainer)] == str(each["default"])
        assert documented[name][-1] == each["description"]
    assert run("plugins", "--trainer", trainer) == 0
    listed = [line.split("\t") for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[0]: row[3] for row in listed} == {name: each["description"] for name, each in shown.items()}
