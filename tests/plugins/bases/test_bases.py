"""Bases from folders and GGUF files: pinned by content, taken once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.bases.edit_base import edit_json
from tunery.plugins.bases.resolve import base_digest, resolve_base
from tunery.plugins.hookspecs import BaseSource, hookimpl
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.errors import (
    ArtifactRefused,
    Conflict,
    NotFound,
    StorageFailed,
    TuneryError,
    Unavailable,
    UnknownName,
)
from tunery.registry.home import Home
from tunery.registry.registry import Registry


def test_a_folder_becomes_a_base_and_is_found_again(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path
) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    assert base.parameters > 10_000
    assert base.digest == base_digest(Path(base.path)) == Path(base.path).name
    assert (Path(base.path) / "tokenizer.json").exists()
    for reference in ("tiny", base.digest, base.digest[:12], str(tiny_base_folder)):
        assert resolve_base(reference, registry=registry, plugins=plugins) == base
    assert list(registry.home.staging.iterdir()) == []


def test_the_digest_follows_the_content_only(tiny_base_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_base_folder, copy)
    assert base_digest(copy) == base_digest(tiny_base_folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": "me", "transformers_version": "0"}))
    assert base_digest(copy) == base_digest(tiny_base_folder)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "local_files_only": True}))
    assert base_digest(copy) == base_digest(tiny_base_folder)
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'other' }}"}))
    assert base_digest(copy) != base_digest(tiny_base_folder)


def test_a_name_that_means_another_base_is_refused(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    other = tmp_path / "other"
    shutil.copytree(tiny_base_folder, other)
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(Conflict, match="another base"):
        resolve_base(str(other), registry=registry, plugins=plugins, name="tiny")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not_a_base"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "artifact_pickled"),
        (lambda folder: edit_json(folder, auto_map={"AutoModel": "evil.Model"}), "artifact_unsafe"),
        (lambda folder: edit_json(folder, quantization_config={"bits": 4}), "unsupported_base"),
        (
            lambda folder: edit_json(folder, name="tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y"]}),
            "artifact_unsafe",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "not_a_base"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not_a_base"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "not_a_base"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "artifact_truncated"),
        (lambda folder: _index(folder, "model.safetensors", "gone.safetensors"), "artifact_truncated"),
        (lambda folder: _index(folder, "../model.safetensors"), "not_a_base"),
        (lambda folder: _index(folder), "not_a_base"),
    ],
)
def test_what_is_no_base_is_refused(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, change: object, code: str
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_base_folder, folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises(ArtifactRefused) as caught:
        resolve_base(str(folder), registry=registry, plugins=plugins)
    assert caught.value.code == code
    assert registry.bases() == []
    assert list(registry.home.staging.iterdir()) == []
    assert list(registry.home.bases.iterdir()) == []


def _index(folder: Path, *names: str) -> None:
    mapped = {f"layer.{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))


def _source(fill: Callable[[str, Path], object], monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """Plugins with a third party's source, `theirs`."""
    module = types.ModuleType("their_module")
    module.fill = fill  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_module", module)
    source = BaseSource(
        name="theirs", summary="theirs", claims=lambda reference: reference == "theirs", entrypoint="their_module:fill"
    )
    plugins = Plugins()
    own = types.SimpleNamespace(register_bases=hookimpl(lambda register: register(source)))
    plugins.add(own, "theirs")
    return plugins


def test_the_host_checks_what_any_source_leaves_behind(
    registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(reference: str, folder: Path) -> str:
        shutil.copytree(tiny_base_folder, folder, dirs_exist_ok=True)
        (folder / "modeling.py").write_text("import os")
        (folder / "extra").mkdir()
        return "from their own place"

    messages: list[str] = []
    base = resolve_base("theirs", registry=registry, plugins=_source(fill, monkeypatch), say=messages.append)
    assert base.digest == base_digest(tiny_base_folder)
    assert "modeling.py" not in {path.name for path in Path(base.path).iterdir()}
    assert messages[-1] == "theirs: from their own place"


def test_a_base_on_its_way_in_is_safe_from_a_collection(
    registry: Registry, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(reference: str, folder: Path) -> None:
        shutil.copytree(tiny_base_folder, folder, dirs_exist_ok=True)
        assert registry.collect(older_than=-1).staged == 0

    base = resolve_base("theirs", registry=registry, plugins=_source(fill, monkeypatch))
    assert base_digest(Path(base.path)) == base.digest


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (RuntimeError("their bug"), Unavailable, "'theirs' failed on theirs: RuntimeError: their bug"),
        (OSError(errno.ENOSPC, "No space left on device"), StorageFailed, "No space left on device"),
    ],
)
def test_a_source_that_fails_leaves_nothing_behind(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[TuneryError], message: str
) -> None:
    def fill(reference: str, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise raised

    with pytest.raises(kind, match=message):
        resolve_base("theirs", registry=registry, plugins=_source(fill, monkeypatch))
    assert registry.bases() == []
    assert list(registry.home.staging.iterdir()) == []


def test_weights_saved_twice_are_kept_once(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(tiny_base_folder, twice)
    shutil.copyfile(twice / "model.safetensors", twice / "consolidated.safetensors")
    base = resolve_base(str(twice), registry=registry, plugins=plugins)
    assert base.digest == base_digest(tiny_base_folder)


def test_a_base_whose_folder_is_gone_is_taken_again(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path
) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    shutil.rmtree(base.path)
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert base_digest(Path(base.path)) == base.digest


def test_a_path_means_the_folder_it_says_here_and_now(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("one", "two"):
        shutil.copytree(tiny_base_folder, tmp_path / place / "model")
    edit_json(tmp_path / "two" / "model", rope_theta=5.0)
    monkeypatch.chdir(tmp_path / "one")
    one = resolve_base("model", registry=registry, plugins=plugins, name="first")
    assert resolve_base("./model", registry=registry, plugins=plugins) == one
    monkeypatch.chdir(tmp_path / "two")
    two = resolve_base("./model", registry=registry, plugins=plugins, name="second")
    assert two.digest != one.digest
    edit_json(tmp_path / "two" / "model", rope_theta=6.0)
    later = time.time() + 10
    os.utime(tmp_path / "two" / "model" / "config.json", (later, later))
    with pytest.raises(Conflict, match="'second' belongs to another base"):
        resolve_base("./model", registry=registry, plugins=plugins)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"\0" * 4096])
def test_a_file_that_is_no_gguf_is_refused(
    registry: Registry, plugins: Plugins, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ArtifactRefused, match="cannot be read as a GGUF model"):
        resolve_base(str(path), registry=registry, plugins=plugins)
    assert list(registry.home.staging.iterdir()) == []


@pytest.mark.slow
def test_a_known_base_is_found_without_torch(home: Home, tiny_base: Base) -> None:
    code = """
import sys
from pathlib import Path
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry
with Registry.open(Home(Path(sys.argv[1]))) as registry:
    resolve_base("tiny", registry=registry, plugins=load_plugins())
print(sorted({"torch", "transformers", "huggingface_hub", "tokenizers", "numpy"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code, str(home.root)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_reference_lists_what_there_is(registry: Registry, plugins: Plugins) -> None:
    with pytest.raises(UnknownName, match="did you mean 'smollm2-135m'"):
        resolve_base("smolm2-135", registry=registry, plugins=plugins)
    with pytest.raises(NotFound, match="no file"):
        resolve_base("/nowhere/model.gguf", registry=registry, plugins=plugins)


@pytest.mark.slow
def test_two_processes_taking_one_base_at_once_agree(home: Home, tiny_base_folder: Path) -> None:
    code = """
import sys
from pathlib import Path
from tunery.plugins.bases.resolve import resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.registry.home import Home
from tunery.registry.registry import Registry
with Registry.open(Home(Path(sys.argv[1]))) as registry:
    print(resolve_base(sys.argv[2], registry=registry, plugins=load_plugins(), name="tiny").digest)
"""
    arguments = [sys.executable, "-c", code, str(home.root), str(tiny_base_folder)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate(timeout=60)[0] for process in processes}
    assert len(digests) == 1
    with Registry.open(home) as registry:
        assert len(registry.bases()) == 1
    assert len(list(home.bases.iterdir())) == 1


@pytest.mark.slow
def test_the_small_base_is_the_real_model(base_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(base_folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(generated[0, ids.shape[1] :])
