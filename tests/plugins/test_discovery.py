"""Installed plugins are found by entry point, built-in ones first, and only those that are allowed."""

from __future__ import annotations

import types

import pytest

from tests.plugins.test_manager import FakeDistribution, FakeEntryPoint, registering, trainer
from tunery.plugins.discovery import load_plugins


def test_the_built_in_plugins_load_like_any_other() -> None:
    plugins = load_plugins(allow=())
    assert {record.name: record.error for record in plugins.records()} == {
        "bases": None,
        "data": None,
        "executors": None,
        "trackers": None,
        "gates": None,
        "trainers": None,
    }
    assert [source.name for source in plugins.base_sources()] == ["small", "gguf", "folder", "hub"]
    assert {record.distribution for record in plugins.records()} == {"tunery"}


def test_order_is_ours_first_then_by_name_and_a_package_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = registering(trainer("lora"))
    installed = [
        FakeDistribution("zeta", FakeEntryPoint("z", lora)),
        FakeDistribution("alpha", FakeEntryPoint("a", registering(trainer("mine")))),
        FakeDistribution("tunery", FakeEntryPoint("core", registering(trainer("lora")))),
        FakeDistribution("Alpha", FakeEntryPoint("stale", SystemExit())),
    ]
    monkeypatch.setattr("tunery.plugins.discovery.distributions", lambda: installed)
    plugins = load_plugins()
    assert [record.name for record in plugins.records()] == ["core", "a", "z"]
    assert "trainer 'lora' is already registered by 'core'" in str(plugins.records()[2].error)


def test_the_allow_list_keeps_others_out_and_names_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = FakeDistribution("their-dist", FakeEntryPoint("theirs", types.SimpleNamespace()))
    monkeypatch.setattr("tunery.plugins.discovery.distributions", lambda: [distribution])
    monkeypatch.setenv("TUNERY_PLUGINS", "")
    assert load_plugins().records() == []
    monkeypatch.setenv("TUNERY_PLUGINS", "thiers")
    (missing,) = load_plugins().records()
    assert (missing.name, missing.hooks) == ("thiers", ())
    assert "not installed: did you mean 'theirs'?" in str(missing.error)
    monkeypatch.setenv("TUNERY_PLUGINS", " theirs ,")
    assert [record.error for record in load_plugins().records()] == [None]
    monkeypatch.delenv("TUNERY_PLUGINS")
    assert [record.error for record in load_plugins().records()] == [None]
