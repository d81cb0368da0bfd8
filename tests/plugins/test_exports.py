"""The public names of the plugin packages are frozen, their usage runs, and importing them stays light."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tunery.plugins.discovery import load_plugins

EXPORTS = {
    "tunery.plugins": [
        "API_VERSION",
        "BaseSource",
        "CheckInfo",
        "Conversation",
        "FormatInfo",
        "GateInfo",
        "PluginRecord",
        "Plugins",
        "TrainerInfo",
        "TrainingParameters",
        "about",
        "hookimpl",
        "load_plugins",
        "read_parameters",
    ],
    "tunery.plugins.data": [
        "CHAT",
        "CheckOptions",
        "PROMPT_COMPLETION",
        "Renderer",
        "check_data",
        "read_rows",
        "register_checks",
        "register_formats",
    ],
    "tunery.plugins.testing": [
        "CHATML",
        "ExecutorConformance",
        "ExecutorHarness",
        "PreferenceConformance",
        "TrainerConformance",
        "TrainerHarness",
        "make_tiny_base",
        "write_pairs",
        "write_rows",
    ],
}
LIGHT = ("tunery.plugins", "tunery.plugins.hookspecs", "tunery.plugins.manager", "tunery.plugins.discovery")


def usage(module: ModuleType) -> str:
    """The code blocks of a module's docstring, as one program."""
    text = (module.__doc__ or "").partition("\n\n")[2]
    blocks = [line if line.startswith("    ") or not line.strip() else "" for line in text.splitlines()]
    return textwrap.dedent("\n".join(blocks))


@pytest.mark.parametrize("name", EXPORTS)
def test_public_names_are_frozen_sorted_and_there(name: str) -> None:
    module = import_module(name)
    assert module.__all__ == sorted(EXPORTS[name])
    assert [export for export in module.__all__ if not hasattr(module, export)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("name", EXPORTS)
def test_the_usage_in_the_docstring_runs(
    name: str, tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    Path("tickets.jsonl").write_text(json.dumps(row) + "\n")
    module = import_module(name)
    names = {export: getattr(module, export) for export in module.__all__}
    names |= {"Path": Path, "base": SimpleNamespace(path=tiny_base_folder), "load_plugins": load_plugins}
    code = usage(module)
    assert code.strip()
    exec(compile(code, f"<usage of {name}>", "exec"), names)


@pytest.mark.parametrize("name", LIGHT)
def test_the_extension_surface_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}; print(sorted({{'torch', 'transformers', 'peft', 'tokenizers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_the_built_in_plugins_imports_no_torch() -> None:
    code = (
        "import sys; from tunery.plugins import load_plugins; load_plugins(allow=());"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
