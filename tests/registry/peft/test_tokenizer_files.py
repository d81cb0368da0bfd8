"""A chat template or tokenizer of an adapter's own is not used, and the import warns of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.hub_server import HubServer
from tests.registry.artifacts import make_adapter
from tunery.registry import Base
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.hub.pull import pull_from_hub
from tunery.registry.peft.tokenizer_files import differences
from tunery.registry.registry import Registry

TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<|end|>"}]}
Files = dict[str, Any]


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("own", "base", "messages"),
    [
        ({}, {"chat_template.jinja": "x"}, []),
        ({"chat_template.jinja": "x\n"}, {"tokenizer_config.json": {"chat_template": "x"}}, []),
        ({"tokenizer_config.json": {}}, {"chat_template.jinja": "x"}, []),
        ({"chat_template.jinja": "y"}, {"chat_template.jinja": "x"}, ["another chat template than its base"]),
        ({"chat_template.jinja": "y"}, {}, ["a chat template, and its base has none"]),
        ({"tokenizer_config.json": {"chat_template": "y"}}, {"chat_template.jinja": "x"}, ["another chat template"]),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "y"}]}},
            {"chat_template.json": {"chat_template": "x"}},
            ["another chat template"],
        ),
        ({"tokenizer.json": TOKENIZER}, {"tokenizer.json": TOKENIZER}, []),
        ({"tokenizer.json": TOKENIZER}, {}, []),
        (
            {"tokenizer.json": {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}},
            {"tokenizer.json": TOKENIZER},
            [],
        ),
        (
            {"tokenizer.json": {**TOKENIZER, "added_tokens": [{"id": 3, "content": "<|new|>"}]}},
            {"tokenizer.json": TOKENIZER},
            ["other ids than its base's for 1 of its tokens ('<|new|>')"],
        ),
        (
            {"tokenizer.json": {"model": {"vocab": {"a": 1, "b": 0}}}, "chat_template.jinja": "y"},
            {"tokenizer.json": TOKENIZER},
            ["chat template", "2 of its tokens"],
        ),
        ({"tokenizer.json": "{", "tokenizer_config.json": "[1]"}, {"tokenizer.json": TOKENIZER}, []),
        (
            {"tokenizer.json": {"model": {"vocab": [[[1]], 2]}, "added_tokens": [1, {}]}},
            {"tokenizer.json": TOKENIZER},
            [],
        ),
    ],
)
def test_a_difference_is_reported(tmp_path: Path, own: Files, base: Files, messages: list[str]) -> None:
    warnings = differences(write(tmp_path / "own", own), write(tmp_path / "base", base))
    assert len(warnings) == len(messages)
    assert all(part in warning for part, warning in zip(messages, warnings, strict=True))


def test_an_import_keeps_what_differs_in_the_manifest(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = write(make_adapter(tmp_path / "a"), {"chat_template.jinja": "{{ messages }}"})
    version = import_folder(registry, folder, Destination(adapter="a/b", base=base, actor="t"))
    assert "add that (tunery bases add FOLDER)" in version.manifest["warnings"][0]
    assert [entry.path for entry in version.files] == ["adapter_config.json", "adapter_model.safetensors"]
    (folder / "chat_template.jinja").unlink()
    assert "warnings" not in import_folder(registry, folder, Destination(adapter="a/b", base=base, actor="t")).manifest


@pytest.mark.slow
def test_a_pull_keeps_it_as_well(registry: Registry, base: Base, hub: HubServer, tmp_path: Path) -> None:
    write(Path(base.path), {"chat_template.jinja": "x"})
    folder = write(make_adapter(tmp_path / "a"), {"tokenizer_config.json": {"chat_template": "y" * 5000}})
    hub.add("x/y", {path.name: path.read_bytes() for path in folder.iterdir()})
    version = pull_from_hub(registry, "x/y", Destination(adapter="a/b", base=base, actor="t"))
    assert "another chat template" in version.manifest["warnings"][0]
    assert "another chat template" in msgspec.json.encode(version).decode()
