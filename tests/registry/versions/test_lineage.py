"""Where versions come from: the line of parents by digest, and which versions were made with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.artifacts import make_adapter
from tunery.registry import Base, NewVersion, Version
from tunery.registry.errors import InvalidInput
from tunery.registry.registry import Registry
from tunery.registry.versions.lineage import data_of

A, B, C = ("a" * 64, "b" * 64, "abcdef12" * 8)


@pytest.fixture
def made(registry: Registry, base: Base, tmp_path: Path) -> Any:
    """`made(seed, adapter=…, parent=version, data=[…])` publishes a version with such a manifest."""

    def made(seed: int, *, adapter: str = "acme/support", parent: Version | None = None, **manifest: Any) -> Version:
        if parent is not None:
            manifest["parent"] = {"version": parent.name, "digest": parent.digest}
        folder = make_adapter(tmp_path / f"adapter-{seed}", seed=seed)
        return registry.publish(
            NewVersion(
                adapter=adapter, folder=folder, base=base, method="lora", manifest=manifest, metrics={}, actor="test"
            )
        )

    return made


def file(sha256: str, name: str = "rows.jsonl") -> dict[str, Any]:
    return {"name": name, "sha256": sha256, "size": 1, "rows": 1, "format": "chat"}


def test_a_line_goes_back_to_the_first_version(registry: Registry, made: Any) -> None:
    first = made(1)
    second = made(2, adapter="acme/other", parent=first)
    third = made(3, parent=second)
    line = registry.lineage(third)
    assert [(each.name, each.version) for each in line] == [
        ("acme/support@2", third), ("acme/other@1", second), ("acme/support@1", first)
    ]  # fmt: skip
    assert registry.lineage(first) == line[2:]


def test_a_parent_is_found_by_digest_whatever_it_is_called_now(registry: Registry, made: Any) -> None:
    first = made(1)
    again = made(1, adapter="acme/copy")
    child = made(2, parent=first)
    assert registry.lineage(child)[1].name == "acme/support@1"
    registry.remove("acme/support@1", actor="test")
    assert registry.lineage(child)[1].version == again
    registry.remove("acme/copy@1", actor="test")
    gone = registry.lineage(child)[1]
    assert (gone.name, gone.digest, gone.version, gone.again) == ("acme/support@1", first.digest, None, False)


def saying(version: Version, parent: Any) -> Version:
    """The version as if its manifest said this of its parent."""
    return msgspec.structs.replace(version, manifest=version.manifest | {"parent": parent})


def test_a_name_that_now_means_other_weights_is_not_the_parent(registry: Registry, made: Any) -> None:
    first, other = made(1), made(9)
    child = saying(made(2, parent=first), {"version": other.name, "digest": first.digest})
    assert registry.lineage(child)[1].version == first


def test_a_loop_ends(registry: Registry, made: Any) -> None:
    first = made(1)
    second = made(2, parent=first)
    made(1, parent=second)  # the first weights again, said to come from the second
    registry.remove("acme/support@1", actor="test")
    line = registry.lineage(second)
    assert [(each.name, each.again) for each in line] == [
        ("acme/support@2", False), ("acme/support@3", False), ("acme/support@2", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parent", [None, "acme/support@1", {}, {"digest": 3}, {"version": "no name", "digest": "x" * 64}]
)
def test_what_is_no_parent_breaks_nothing(registry: Registry, made: Any, parent: Any) -> None:
    assert all(each.version is None for each in registry.lineage(saying(made(1), parent))[1:])


def test_uses_of_a_file_are_found_by_its_sha256_with_their_roles(registry: Registry, made: Any) -> None:
    made(1, data=[file(A), file(C, "more.jsonl")], validation=False)
    made(2, data=[file(B), file(A, "val.jsonl")], validation=True)
    made(3, adapter="acme/other", data=[file(A)], validation=False)
    made(4, adapter="acme/other", data=[file(B)])
    assert [(use.version, use.name, use.role) for use in registry.uses(A)] == [
        ("acme/other@1", "rows.jsonl", "train"),
        ("acme/support@1", "rows.jsonl", "train"),
        ("acme/support@2", "val.jsonl", "held-out"),
    ]
    assert registry.uses(C) == registry.uses("abcdef12")
    assert registry.uses("0" * 64) == []


def test_a_removed_version_uses_nothing(registry: Registry, made: Any) -> None:
    made(1, data=[file(A)])
    made(2, data=[file(A)])
    registry.remove("acme/support@1", actor="test")
    assert [use.version for use in registry.uses(A)] == ["acme/support@2"]


def test_a_file_that_was_given_twice_is_used_twice(registry: Registry, made: Any) -> None:
    made(1, data=[file(A), file(A)], validation=True)
    assert [use.role for use in registry.uses(A)] == ["train", "held-out"]


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, "a" * 65, "A" * 64, "aaaa%aaaa"])
def test_what_is_no_sha256_is_refused(registry: Registry, wrong: str) -> None:
    with pytest.raises(InvalidInput, match="is not a sha256"):
        registry.uses(wrong)


def test_a_beginning_that_two_files_share_is_refused(registry: Registry, made: Any) -> None:
    made(1, data=[file("12345678" + "0" * 56), file("12345678" + "1" * 56)])
    with pytest.raises(InvalidInput, match="several files"):
        registry.uses("12345678")


NAMES = st.sampled_from(["sha256", "name", "data", "validation"])
JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=70) | st.just(A),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
)


@given(manifest=st.dictionaries(NAMES, JSON))
def test_no_manifest_keeps_a_version_from_being_published(manifest: dict[str, Any]) -> None:
    for file in data_of(manifest):
        assert len(file.sha256) == 64
        assert file.role in ("train", "held-out")
