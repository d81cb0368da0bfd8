"""Plugins: loaded one by one, named when they fail, and never able to break the host."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, EntryPoint, EntryPoints
from typing import Any

import click
import pytest

from tunery.plugins.descriptors import load_entrypoint
from tunery.plugins.discovery import load_plugins
from tunery.plugins.events import CheckpointSaved, JobEvent
from tunery.plugins.hookspecs import API_VERSION, BaseSource, FormatInfo, TrainerInfo, hookimpl
from tunery.plugins.manager import Plugins
from tunery.plugins.parameters import TrainingParameters
from tunery.registry import Job
from tunery.registry.errors import InvalidInput, UnknownName

JOB = Job(id="j", adapter="a/b", trainer="lora", state="running", created_at=0.0, updated_at=0.0)


def plugin(**functions: Callable[..., Any]) -> types.SimpleNamespace:
    """A plugin object with the given hook implementations."""
    return types.SimpleNamespace(**{name: hookimpl(function) for name, function in functions.items()})


def trainer(name: str, *, api_version: int = API_VERSION) -> TrainerInfo:
    return TrainerInfo(
        name=name, summary=name, entrypoint="x:y", parameters=TrainingParameters, api_version=api_version
    )


def registering(*infos: TrainerInfo) -> types.SimpleNamespace:
    def register_trainers(register: Callable[[TrainerInfo], None]) -> None:
        for info in infos:
            register(info)

    return plugin(register_trainers=register_trainers)


def test_a_name_that_is_taken_names_both_owners_and_leaves_nothing_behind() -> None:
    plugins = Plugins()
    plugins.add(registering(trainer("mine")), "first")
    with pytest.raises(InvalidInput, match="'mine' is already registered by 'first'"):
        plugins.add(registering(trainer("other"), trainer("mine")), "second")
    assert list(plugins.trainers()) == ["mine"]
    assert [record.name for record in plugins.records()] == ["first"]


def test_a_misspelt_hook_is_an_error_with_the_near_one() -> None:
    with pytest.raises(InvalidInput, match=r"unknown hook 'register_trainer'.*did you mean 'register_trainers'"):
        Plugins().add(plugin(register_trainer=lambda register: None), "typo")


def test_a_plugin_for_a_newer_tunery_is_refused() -> None:
    with pytest.raises(InvalidInput, match="upgrade Tunery"):
        Plugins().add(registering(trainer("x", api_version=API_VERSION + 1)), "new")


def test_an_unknown_trainer_lists_near_ones() -> None:
    plugins = Plugins()
    plugins.add(registering(trainer("lora"), trainer("qlora")), "p")
    with pytest.raises(UnknownName, match=r"unknown trainer 'lorra': did you mean 'lora' or 'qlora'\?"):
        plugins.trainer("lorra")


class FakeDistribution(Distribution):
    """An installed package of the given name, without files."""

    version = "1.2"

    def __init__(self, name: str = "broken-dist", *entries: EntryPoint) -> None:
        self._name, self._entries = name, EntryPoints(entries)

    @property
    def metadata(self) -> Any:
        return {"Name": self._name}

    @property
    def entry_points(self) -> EntryPoints:
        return self._entries

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def test_a_broken_plugin_is_reported_by_name_and_the_rest_load(caplog: pytest.LogCaptureFixture) -> None:
    plugins = Plugins()
    plugins.add_entry_point(EntryPoint("gone", "no.such.module", "tunery"), FakeDistribution())
    plugins.add(registering(trainer("fine")), "fine")
    gone, fine = plugins.records()
    assert (gone.name, gone.distribution, gone.version, fine.error) == ("gone", "broken-dist", "1.2", None)
    assert gone.error is not None
    assert "No module named 'no'" in gone.error
    assert "gone (broken-dist 1.2) is left out" in caplog.text


def test_an_observer_that_raises_breaks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, Any]] = []

    def broken(event: JobEvent) -> None:
        raise RuntimeError("my fault")

    plugins = Plugins()
    plugins.add(plugin(job_event=lambda job, event: seen.append((job.id, event))), "one")
    plugins.add(plugin(job_event=broken), "two")
    plugins.add(plugin(job_event=lambda event: seen.append(("fewer", event))), "three")
    with caplog.at_level(logging.ERROR):
        plugins.job_event(JOB, CheckpointSaved(step=1))
    assert sorted(name for name, _ in seen) == ["fewer", "j"]
    assert "plugin two failed in job_event" in caplog.text


def test_plugins_add_commands_but_replace_none(caplog: pytest.LogCaptureFixture) -> None:
    @click.group()
    def cli() -> None:
        """A program."""

    @cli.command("core")
    def core() -> None:
        """Built in."""

    def register_commands(cli: click.Group) -> None:
        cli.command("core")(lambda: None)
        cli.command("extra")(lambda: None)

    plugins = Plugins()
    plugins.add(plugin(register_commands=register_commands), "p")
    plugins.add_commands(cli)
    assert sorted(cli.commands) == ["core", "extra"]
    assert cli.commands["core"] is core
    assert "may not replace the command 'core'" in caplog.text


def test_other_descriptors_are_shelved_too() -> None:
    source = BaseSource(name="s3", summary="", claims=lambda reference: False, entrypoint="x:y", priority=1)
    form = FormatInfo(name="alpaca", summary="", sniff=lambda row: False, to_conversation=lambda row: [])
    plugins = Plugins()
    own = plugin(register_bases=lambda register: register(source), register_formats=lambda register: register(form))
    plugins.add(own, "p")
    assert plugins.base_sources() == [source]
    assert plugins.formats() == {"alpaca": form}


@pytest.mark.parametrize("path", ["no.such:thing", "tunery.plugins.manager:nothing", "tunery.plugins.manager", ":x"])
def test_an_entry_point_that_cannot_be_loaded_is_named(path: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_entrypoint(path)


class FakeEntryPoint(EntryPoint):
    """An entry point that loads an object at hand, or raises it."""

    def __new__(cls, name: str, loaded: object) -> FakeEntryPoint:
        entry = super().__new__(cls)
        EntryPoint.__init__(entry, name, "module", "tunery")
        vars(entry)["loaded"] = loaded
        return entry

    def __init__(self, name: str, loaded: object) -> None:
        """Done already: entry points are immutable."""

    def load(self) -> Any:
        loaded = vars(self)["loaded"]
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded


def test_a_second_plugin_of_a_name_takes_nothing_from_the_first() -> None:
    plugins = load_plugins(allow=())
    before = dict(plugins.trainers())
    plugins.add_entry_point(FakeEntryPoint("trainers", registering(trainer("theirs"))), FakeDistribution("their-dist"))
    assert dict(plugins.trainers()) == before != {}
    failed = plugins.records()[-1]
    assert (failed.name, failed.distribution) == ("trainers", "their-dist")
    assert "'trainers' already belongs to tunery" in str(failed.error)


def test_a_plugin_that_exits_is_left_out_like_any_other() -> None:
    plugins = Plugins()
    plugins.add_entry_point(FakeEntryPoint("rude", SystemExit(3)), FakeDistribution())
    assert [record.error for record in plugins.records()] == ["SystemExit: 3"]


def test_what_is_no_descriptor_is_refused_by_kind() -> None:
    with pytest.raises(InvalidInput, match="a trainer is described by a TrainerInfo, not by dict"):
        Plugins().add(plugin(register_trainers=lambda register: register({"name": "x"})), "p")


def test_a_wrapper_is_refused_since_nobody_would_run_it() -> None:
    @hookimpl(wrapper=True)
    def job_event(event: JobEvent) -> Iterator[None]:
        yield

    with pytest.raises(InvalidInput, match="job_event may not be a wrapper"):
        Plugins().add(types.SimpleNamespace(job_event=job_event), "p")


def test_arguments_that_a_hook_does_not_have_leave_the_plugin_out_and_nothing_behind() -> None:
    plugins = Plugins()
    own = registering(trainer("half"))
    own.job_event = hookimpl(lambda job, evnt: None)
    plugins.add_entry_point(FakeEntryPoint("typo", own), FakeDistribution())
    assert "evnt" in str(plugins.records()[0].error)
    assert plugins.trainers() == {}
    plugins.job_event(JOB, CheckpointSaved(step=1))
