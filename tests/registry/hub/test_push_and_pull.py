"""Push to the Hub and pull with the real huggingface_hub client, and every way in which that can fail."""

from __future__ import annotations

import errno
import json
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer
from tests.registry.artifacts import HIDDEN, make_adapter
from tests.registry.conftest import Publish
from tunery.registry import Base, NewVersion
from tunery.registry.errors import ArtifactRefused, Conflict, InvalidInput, NotFound, StorageFailed, Unavailable
from tunery.registry.hub.incoming import Destination, import_folder
from tunery.registry.hub.pull import pull_from_hub
from tunery.registry.hub.push import publish_to_hub
from tunery.registry.registry import Registry

FILES = ("adapter_config.json", "adapter_model.safetensors")


def void(value: object) -> None:
    """Nothing, whatever the value."""


def as_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_publishing_is_one_commit_and_one_tag(registry: Registry, publish: Publish, hub: HubServer) -> None:
    version = publish(seed=1)
    published = publish_to_hub(registry, version, repository="acme/support-lora")
    repository = hub.repositories["acme/support-lora"]
    assert len(repository.commits) == 2
    assert repository.tags == {f"v1-{version.digest[:12]}": published.commit}
    tree = repository.commits[-1].tree
    assert set(tree) == {*FILES, "README.md", "tunery.json"}
    weights = registry.files(version)["adapter_model.safetensors"].read_bytes()
    assert tree["adapter_model.safetensors"] == weights
    card = tree["README.md"].decode()
    assert card.startswith('---\nbase_model: "tiny"\nlibrary_name: "peft"')
    assert version.digest in card
    assert "eval_loss | 1 |" in card
    assert json.loads(tree["adapter_config.json"])["base_model_name_or_path"] == "tiny"


@pytest.mark.slow
def test_publishing_again_changes_nothing(registry: Registry, publish: Publish, hub: HubServer) -> None:
    version = publish(seed=1)
    first = publish_to_hub(registry, version, repository="acme/support-lora")
    assert publish_to_hub(registry, version, repository="acme/support-lora") == first
    assert len(hub.repositories["acme/support-lora"].commits) == 2
    second = publish_to_hub(registry, publish(seed=2), repository="acme/support-lora")
    assert second.commit != first.commit
    assert len(hub.repositories["acme/support-lora"].tags) == 2
    assert publish_to_hub(registry, version, repository="acme/support-lora") == first
    assert hub.repositories["acme/support-lora"].commits[-1].oid == second.commit


@pytest.mark.slow
def test_somebody_faster_is_not_overwritten(registry: Registry, publish: Publish, hub: HubServer) -> None:
    others = [{"NOTES.md": b"mine"}, {"NOTES.md": b"mine", "MORE.md": b"too"}]

    def faster() -> None:
        if others:
            hub.add("acme/support-lora", others.pop(0))

    hub.before_commit = faster
    published = publish_to_hub(registry, publish(seed=1), repository="acme/support-lora")
    repository = hub.repositories["acme/support-lora"]
    assert [commit.message for commit in repository.commits[1:3]] == ["by hand", "by hand"]
    assert repository.commits[-1].oid == published.commit
    assert set(repository.commits[-1].tree) == {*FILES, "README.md", "tunery.json", "NOTES.md", "MORE.md"}


@pytest.mark.slow
def test_somebody_who_never_stops_is_given_way(registry: Registry, publish: Publish, hub: HubServer) -> None:
    count = iter(range(100))
    hub.before_commit = lambda: void(hub.add("acme/support-lora", {"NOTES.md": b"%d" % next(count)}))
    with pytest.raises(Conflict, match="keeps changing"):
        publish_to_hub(registry, publish(seed=1), repository="acme/support-lora")
    assert hub.repositories["acme/support-lora"].tags == {}


@pytest.mark.slow
def test_files_of_the_version_before_do_not_stay(
    registry: Registry, base: Base, publish: Publish, hub: HubServer, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "full")
    (folder / "model").mkdir()
    (folder / "adapter_model.safetensors").rename(folder / "model" / "model.safetensors")
    make_adapter(folder)
    full = registry.publish(
        NewVersion(adapter="a/b", folder=folder, base=base, method="full", manifest={}, metrics={}, actor="t")
    )
    first = publish_to_hub(registry, full, repository="acme/support-lora")
    repository = hub.repositories["acme/support-lora"]
    hub.add("acme/support-lora", {**repository.commits[-1].tree, "LICENSE": b"mine"})
    publish_to_hub(registry, publish(seed=2), repository="acme/support-lora")
    assert set(repository.commits[-1].tree) == {*FILES, "README.md", "tunery.json", "LICENSE"}
    tagged = repository.at(first.tag)
    assert tagged is not None
    assert "model/model.safetensors" in tagged.tree


@pytest.mark.slow
def test_a_tag_that_failed_is_made_by_publishing_again(registry: Registry, publish: Publish, hub: HubServer) -> None:
    version = publish(seed=1)
    hub.fail_tags = 400
    with pytest.raises(Unavailable, match="answered 400"):
        publish_to_hub(registry, version, repository="acme/support-lora")
    hub.fail_tags = None
    published = publish_to_hub(registry, version, repository="acme/support-lora")
    repository = hub.repositories["acme/support-lora"]
    assert len(repository.commits) == 2
    assert repository.tags == {published.tag: repository.commits[-1].oid}


@pytest.mark.slow
def test_a_damaged_version_is_not_published(registry: Registry, publish: Publish, hub: HubServer) -> None:
    version = publish(seed=1)
    registry.files(version)["adapter_model.safetensors"].write_bytes(b"damaged")
    with pytest.raises(ArtifactRefused, match="damaged"):
        publish_to_hub(registry, version, repository="acme/support-lora")
    assert hub.repositories == {}


@pytest.mark.slow
def test_nothing_published_names_a_folder_of_this_machine(
    registry: Registry, base: Base, hub: HubServer, tmp_path: Path
) -> None:
    local = msgspec.structs.replace(base, source=base.path, name="local", digest="d" * 64)
    registry.add_base(local)
    folder = make_adapter(tmp_path / "a", base_model_name_or_path=base.path)
    version = registry.publish(
        NewVersion(adapter="a/b", folder=folder, base=local, method="lora", manifest={}, metrics={}, actor="t")
    )
    for named in (None, "acme/base"):
        publish_to_hub(registry, version, repository=f"x/{named is None}", base_model=named)
        tree = hub.repositories[f"x/{named is None}"].commits[-1].tree
        assert not [name for name, data in tree.items() if str(tmp_path).encode() in data]
        assert json.loads(tree["adapter_config.json"])["base_model_name_or_path"] == (named or "local")


@pytest.mark.slow
def test_what_was_published_says_which_base_it_needs(
    registry: Registry, publish: Publish, base: Base, hub: HubServer
) -> None:
    published = publish_to_hub(registry, publish(seed=1), repository="acme/support-lora")
    other = registry.add_base(msgspec.structs.replace(base, name="other", digest="e" * 64))
    with pytest.raises(ArtifactRefused, match="digest bbbbbbbbbbbb") as caught:
        pull_from_hub(registry, f"acme/support-lora@{published.tag}", Destination(adapter="a/b", base=other, actor="t"))
    assert caught.value.code == "wrong_base"
    pulled = pull_from_hub(
        registry, "acme/support-lora", Destination(adapter="a/b", base=other, actor="t", trust_base=True)
    )
    assert pulled.base == "other"


@pytest.mark.slow
def test_there_and_back_is_the_same_version(registry: Registry, publish: Publish, base: Base, hub: HubServer) -> None:
    version = publish(seed=1)
    published = publish_to_hub(registry, version, repository="acme/support-lora")
    for revision in ("", "@main", f"@{published.tag}", f"@{published.commit}"):
        pulled = pull_from_hub(
            registry,
            f"acme/support-lora{revision}",
            Destination(adapter="globex/imported", base=base, actor="t", alias="production"),
        )
        assert pulled.digest == version.digest
        assert pulled.manifest["origin"]["commit"] == published.commit
    assert registry.resolve("globex/imported").number == 4
    assert list(registry.home.staging.iterdir()) == []


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_changes(
    registry: Registry, base: Base, hub: HubServer, tmp_path: Path
) -> None:
    wrong = np.ones((2, HIDDEN + 1), np.float32)
    q = "base_model.model.model.layers.0.q_proj.lora_A.weight"
    hub.add("x/wrong", as_files(make_adapter(tmp_path / "w", changes={q: wrong})))
    hub.add("x/pickle", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickled"})
    hub.add("x/dora-like", as_files(make_adapter(tmp_path / "l", peft_type="LOHA")))
    with pytest.raises(ArtifactRefused, match="another base"):
        pull_from_hub(registry, "x/wrong", Destination(adapter="a/b", base=base, actor="t"))
    with pytest.raises(ArtifactRefused, match=r"adapter_model.bin, a pickle") as caught:
        pull_from_hub(registry, "x/pickle", Destination(adapter="a/b", base=base, actor="t"))
    assert caught.value.code == "artifact_pickled"
    hub.add("x/model", {"config.json": b"{}", "model.safetensors": b""})
    with pytest.raises(NotFound, match=r"not a PEFT adapter in safetensors; it has: config.json, model.safetensors"):
        pull_from_hub(registry, "x/model", Destination(adapter="a/b", base=base, actor="t"))
    with pytest.raises(ArtifactRefused, match="LOHA"):
        pull_from_hub(registry, "x/dora-like", Destination(adapter="a/b", base=base, actor="t"))
    assert registry.versions() == []
    assert list(registry.home.staging.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message", "code"),
    [
        ("x/none", "x/none is not on", "hub_not_found"),
        ("x/there@none", r"x/there has no revision 'none': it has main, v1", "hub_revision_not_found"),
        ("x/there/none", "subfolders: x/there/checkpoint-20", "not_an_adapter"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    registry: Registry, base: Base, hub: HubServer, tmp_path: Path, source: str, message: str, code: str
) -> None:
    files = as_files(make_adapter(tmp_path / "a"))
    oid = hub.add("x/there", files | {f"checkpoint-20/{name}": data for name, data in files.items()})
    hub.repositories["x/there"].tags["v1"] = oid
    with pytest.raises(NotFound, match=message) as caught:
        pull_from_hub(registry, source, Destination(adapter="a/b", base=base, actor="t"))
    assert caught.value.code == code


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["", "@v1"])
def test_an_adapter_in_a_subfolder_is_pulled(
    registry: Registry, base: Base, hub: HubServer, tmp_path: Path, revision: str
) -> None:
    inner = as_files(make_adapter(tmp_path / "inner", seed=2))
    report = {"runs/20/report/report.md": b"# Report\n"}
    oid = hub.add("x/runs", {f"runs/20/{name}": data for name, data in inner.items()} | report)
    hub.repositories["x/runs"].tags["v1"] = oid
    version = pull_from_hub(registry, f"x/runs/runs/20{revision}", Destination(adapter="a/b", base=base, actor="t"))
    assert registry.files(version)["adapter_model.safetensors"].read_bytes() == inner["adapter_model.safetensors"]
    assert registry.files(version)["report/report.md"].read_bytes() == b"# Report\n"
    assert version.manifest["origin"]["subfolder"] == "runs/20"
    with pytest.raises(NotFound, match="x/runs/runs/20"):
        pull_from_hub(registry, "x/runs", Destination(adapter="a/b", base=base, actor="t"))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["plain", "a//c", "a/../c", "a b/c"])
def test_names_the_hub_would_not_have(registry: Registry, base: Base, hub: HubServer, source: str) -> None:
    with pytest.raises(InvalidInput):
        pull_from_hub(registry, source, Destination(adapter="a/b", base=base, actor="t"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "kind"), [(403, InvalidInput), (409, Conflict), (412, Conflict), (400, Unavailable)]
)
def test_a_hub_that_refuses(
    registry: Registry, publish: Publish, hub: HubServer, status: int, kind: type[Exception]
) -> None:
    version = publish(seed=1)
    hub.fail_commits = status
    with pytest.raises(kind):
        publish_to_hub(registry, version, repository="acme/support-lora")
    assert hub.repositories["acme/support-lora"].tags == {}
    assert registry.versions() == [version]


def test_a_hub_that_cannot_be_reached(
    registry: Registry, publish: Publish, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(Unavailable, match="cannot be reached"):
            publish_to_hub(registry, publish(seed=1), repository="a/b")
        with pytest.raises(Unavailable, match="cannot be reached"):
            pull_from_hub(registry, "a/b", Destination(adapter="c/d", base=base, actor="t"))


@pytest.mark.slow
def test_a_full_disk_here_is_not_the_hubs_fault(
    registry: Registry, publish: Publish, base: Base, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_to_hub(registry, publish(seed=1), repository="acme/support-lora")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StorageFailed, match="No space left"):
        pull_from_hub(registry, "acme/support-lora", Destination(adapter="a/b", base=base, actor="t"))
    assert registry.adapters() == ["acme/support"]
    assert list(registry.home.staging.iterdir()) == []


def test_a_local_folder_is_imported_without_its_other_files(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "mine", seed=4)
    (folder / "optimizer.pt").write_bytes(b"pickled")
    (folder / "README.md").write_text("hello")
    version = import_folder(registry, folder, Destination(adapter="acme/imported", base=base, actor="t"))
    assert [entry.path for entry in version.files] == list(FILES)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ArtifactRefused) as caught:
        import_folder(registry, folder, Destination(adapter="acme/imported", base=base, actor="t"))
    assert caught.value.code == "artifact_pickled"
    with pytest.raises(NotFound):
        import_folder(registry, tmp_path / "nowhere", Destination(adapter="acme/imported", base=base, actor="t"))


def test_links_out_of_the_folder_are_not_followed(registry: Registry, base: Base, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "mine")
    (folder / "adapter_config.json").rename(tmp_path / "outside.json")
    (folder / "adapter_config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ArtifactRefused, match="link"):
        import_folder(registry, folder, Destination(adapter="acme/imported", base=base, actor="t"))
