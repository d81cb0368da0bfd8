"""Versions: numbered, immutable, and resolved from every kind of reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.registry.artifacts import make_adapter
from tests.registry.conftest import Publish
from tunery.registry import Base, NewVersion
from tunery.registry.errors import Conflict, InvalidInput, NotFound
from tunery.registry.home import Home
from tunery.registry.jobs.queue import Claim
from tunery.registry.records import JobRequest
from tunery.registry.registry import Registry


def test_versions_count_from_one_and_keep_what_they_were_given(registry: Registry, publish: Publish) -> None:
    first, second = publish(seed=1), publish(seed=2)
    assert [first.number, second.number] == [1, 2]
    assert first.digest != second.digest
    version = registry.version("acme/support", 1)
    assert (version.manifest, version.metrics, version.method) == ({"seed": 1}, {"eval_loss": 1.0}, "lora")
    assert version == first
    assert [entry.path for entry in version.files] == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_bare_name_means_production_or_else_the_newest(registry: Registry, publish: Publish) -> None:
    publish(seed=1)
    publish(seed=2)
    assert registry.resolve("acme/support").number == 2
    registry.move_alias("acme/support", "production", 1, actor="test")
    assert registry.resolve("acme/support").number == 1
    assert registry.resolve("acme/support@production").number == 1
    assert registry.resolve("acme/support@2").number == 2


@pytest.mark.parametrize("reference", ["acme/support@9", "acme/support@canary", "acme/suport", "other/one"])
def test_what_does_not_exist_is_named_with_what_does(registry: Registry, publish: Publish, reference: str) -> None:
    publish()
    with pytest.raises(NotFound, match=r"acme/support") as caught:
        registry.resolve(reference)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    "name", ["Acme/x", "acme", "acme/", "../etc/x", "acme/a/b", "acme/..", "acme/x y", "a/b@0", "a/b@", "a/b@A"]
)
def test_names_that_cannot_be_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput):
        registry.resolve(name)


def test_equal_content_has_an_equal_digest_and_shares_its_blobs(registry: Registry, publish: Publish) -> None:
    first, again = publish(seed=1), publish("globex/other", seed=1)
    assert first.digest == again.digest
    assert registry.files(first) == registry.files(again)
    assert registry.by_digest(first.digest[:12]).digest == first.digest


def test_the_digest_ignores_where_and_follows_what(registry: Registry, base: Base, tmp_path: Path) -> None:
    def digest(name: str, **config: Any) -> str:
        folder = make_adapter(tmp_path / name, **config)
        version = registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
        )
        return version.digest

    plain = digest("one", base_model_name_or_path="/somewhere")
    assert digest("two", base_model_name_or_path="elsewhere", target_modules=["q_proj", "up_proj"]) == plain
    assert digest("three", lora_alpha=5) != plain
    assert digest("four", seed=9) != plain


def test_a_removed_number_is_never_used_again(registry: Registry, publish: Publish) -> None:
    publish(seed=1)
    publish(seed=2, alias="production")
    with pytest.raises(Conflict, match="production"):
        registry.remove("acme/support@2", actor="test")
    registry.remove("acme/support@2", actor="test", force=True)
    assert registry.aliases("acme/support") == {}
    assert registry.history("acme/support")[-1].reason == "version removed"
    assert publish(seed=3).number == 3


def test_export_gives_the_files_back(registry: Registry, publish: Publish, tmp_path: Path) -> None:
    version = publish(seed=5)
    registry.export(version, tmp_path / "out")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "adapter-5" / name).read_bytes()


def test_everything_is_still_there_after_reopening(home: Home, registry: Registry, publish: Publish) -> None:
    version = publish(alias="production")
    registry.close()
    with Registry.open(home) as again:
        assert again.resolve("acme/support") == version


def test_changes_are_seen_whoever_makes_them(home: Home, registry: Registry, publish: Publish) -> None:
    before = registry.changes()
    assert registry.changes() == before
    publish(seed=1)
    after = registry.changes()
    assert after != before
    with Registry.open(home) as other:
        other.move_alias("acme/support", "canary", 1, actor="somebody else")
    assert registry.changes() != after


def test_a_registry_of_a_newer_tunery_is_refused(home: Home, registry: Registry) -> None:
    with registry._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidInput, match="newer Tunery"):
        Registry.open(home)


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    from tunery.registry.errors import StorageFailed

    home = Home(tmp_path / "h")
    home.ensure()
    home.database.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageFailed, match=r"registry\.db"):
        Registry.open(home)


def test_the_list_says_what_each_bare_name_means(registry: Registry, publish: Publish) -> None:
    for adapter in ("acme/support", "globex/tickets"):
        for seed in (1, 2, 3):
            publish(adapter, seed=seed, alias="canary")
    registry.move_alias("acme/support", "production", 2, actor="test")
    latest = registry.latest()
    assert [version.name for version in latest] == ["acme/support@2", "globex/tickets@3"]
    assert latest == [registry.resolve(name) for name in ("acme/support", "globex/tickets")]
    assert [version.aliases for version in latest] == [("production",), ("canary",)]
    assert registry.versions("acme/support") == [registry.version("acme/support", n) for n in (1, 2, 3)]


def test_what_is_done_to_an_exported_copy_does_not_reach_the_registry(
    registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    version = publish(seed=5)
    registry.export(version, tmp_path / "out")
    with (tmp_path / "out" / "adapter_model.safetensors").open("r+b") as file:
        file.write(b"scribble")
    assert registry.verify() == []


def test_publishing_again_repairs_a_damaged_blob(registry: Registry, publish: Publish) -> None:
    version = publish(seed=1)
    path = registry.files(version)["adapter_model.safetensors"]
    path.write_bytes(b"x" * path.stat().st_size)
    assert registry.verify() != []
    publish(seed=1)
    assert registry.verify() == []


def test_a_base_that_moved_is_found_where_it_is_now(registry: Registry, base: Base, tmp_path: Path) -> None:
    Path(base.path).rename(tmp_path / "elsewhere")
    moved = msgspec.structs.replace(base, path=str(tmp_path / "elsewhere"))
    assert registry.add_base(moved) == moved
    assert registry.base(base.name) == moved


def test_a_version_that_jobs_continue_from_is_kept(registry: Registry, publish: Publish, tmp_path: Path) -> None:
    publish(seed=1)
    publish(seed=2)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    file = registry.data_files.add(rows, tenant="acme", purpose="fine-tune", name="rows.jsonl").id
    request = JobRequest(adapter="acme/bot", trainer="lora", base="b" * 64, data=(file,), parent="acme/support@1")
    job = registry.queue.submit(request, tenant="acme").id
    states = [registry.job(job).state]
    for act in (
        lambda: registry.queue.request(job, "pause"),
        lambda: (registry.queue.resume(job), registry.queue.claim("test")),
    ):
        for force in (False, True):
            with pytest.raises(Conflict, match=f"{job} continues from acme/support@1") as refused:
                registry.remove("acme/support@1", actor="t", force=force)
            assert refused.value.code == "version_in_use"
        act()
        states.append(registry.job(job).state)
    assert states == ["queued", "paused", "running"]
    with pytest.raises(Conflict, match="let it end, or cancel it"):
        registry.remove("acme/support@1", actor="t")
    registry.remove("acme/support@2", actor="t")
    claimed = registry.job(job)
    registry.queue.finish(Claim(job, claimed.fence), "failed", error="no")
    assert registry.remove("acme/support@1", actor="t").number == 1
