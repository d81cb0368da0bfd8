"""Reports of versions: outside the digest, kept with the version everywhere, and never written by a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.registry.artifacts import make_adapter
from tunery.registry import Base, NewVersion, Version
from tunery.registry.errors import ArtifactRefused
from tunery.registry.hub.incoming import Destination
from tunery.registry.hub.pull import pull_from_hub
from tunery.registry.hub.push import publish_to_hub
from tunery.registry.registry import Registry
from tunery.registry.versions.publish import digest_of
from tunery.registry.versions.reports import LIMITS, PUBLIC, is_imported

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 1000
FILES = {
    "report.json": b'{"adapter": "acme/support"}',
    "report.md": "# Report\n\nIt did well → 1.0.\n\n![Loss by step](loss.png)\n".encode(),
    "loss.png": PNG,
    "rows.jsonl": b'{"line": 1}\n',
    "samples.json": b"[]",
    "samples.md": b"# Samples\n\n### rows.jsonl:1: win\n\nthe secret prompt\n",
}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def reported(registry: Registry, base: Base, tmp_path: Path, report: Path) -> Version:
    """A version with a report."""
    return registry.publish(NewVersion(adapter="acme/support", folder=make_adapter(tmp_path / "a", seed=1), base=base, method="lora", manifest={}, metrics={}, actor="t", report=report))  # fmt: skip


def test_a_report_changes_no_digest(registry: Registry, base: Base, tmp_path: Path, reported: Version) -> None:
    folder = make_adapter(tmp_path / "a", seed=1)
    bare = registry.publish(
        NewVersion(adapter="acme/bare", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
    )
    assert reported.digest == bare.digest == digest_of(folder, base=base)[0]
    assert {entry.path for entry in reported.files} - {entry.path for entry in bare.files} == set(LIMITS)
    assert registry.resolve("acme/support").files == reported.files


def test_a_report_is_exported_verified_and_collected_like_any_file(
    registry: Registry, tmp_path: Path, reported: Version
) -> None:
    registry.export(reported, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "report").iterdir()} == FILES
    assert registry.collect(older_than=-1).blobs == 0
    assert registry.verify() == []
    registry.files(reported)["report/report.md"].write_bytes(b"other")
    assert [problem.path for problem in registry.verify("acme/support")] == ["report/report.md"]
    registry.remove("acme/support@1", actor="t")
    assert registry.collect(older_than=-1).blobs == len(reported.files)


@pytest.mark.parametrize("name", ["report/report.json", "report/mine.txt", "report"])
def test_a_trainer_may_not_write_where_the_report_goes(
    registry: Registry, base: Base, tmp_path: Path, name: str
) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    for attempt in (
        lambda: registry.publish(
            NewVersion(adapter="a/b", folder=folder, base=base, method="lora", manifest={}, metrics={}, actor="t")
        ),
        lambda: digest_of(folder, base=base),
    ):
        with pytest.raises(ArtifactRefused, match="is reserved for a version's report") as caught:
            attempt()
        assert caught.value.code == "artifact_reserved"
    assert registry.versions() == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"hello", "is not a file of a report"),
        ("report.json", b"{", "cannot be read"),
        ("report.md", b"\xff", "cannot be read"),
        ("loss.png", b"GIF89a", "is not a PNG"),
        ("samples.md", b"x" * (LIMITS["report/samples.md"] + 1), "bytes; a report's may have"),
    ],
)
def test_what_is_no_report_is_refused(
    registry: Registry, base: Base, tmp_path: Path, report: Path, name: str, content: bytes, message: str
) -> None:
    (report / name).write_bytes(content)
    with pytest.raises(ArtifactRefused, match=message):
        registry.publish(NewVersion(adapter="a/b", folder=make_adapter(tmp_path / "a"), base=base, method="lora", manifest={}, metrics={}, actor="t", report=report))  # fmt: skip
    assert registry.versions() == []


@pytest.mark.slow
def test_the_hub_gets_the_report_but_no_rows(registry: Registry, reported: Version, hub: HubServer) -> None:
    publish_to_hub(registry, reported, repository="x/y")
    tree = hub.repositories["x/y"].commits[-1].tree
    assert {name for name in tree if name.startswith("report/")} == set(PUBLIC)
    card = tree["README.md"].decode()
    assert "## Report\n\nIt did well → 1.0.\n\n![Loss by step](report/loss.png)" in card
    assert not [name for name, data in tree.items() if b"secret" in data]
    assert {entry["path"] for entry in json.loads(tree["tunery.json"])["files"]} <= set(tree)


@pytest.mark.slow
def test_the_hub_gets_the_samples_when_they_are_asked_for(
    registry: Registry, reported: Version, hub: HubServer
) -> None:
    publish_to_hub(registry, reported, repository="x/y", samples=True)
    tree = hub.repositories["x/y"].commits[-1].tree
    assert {name for name in tree if name.startswith("report/")} == set(LIMITS)
    assert "## Samples\n\n### rows.jsonl:1: win\n\nthe secret prompt" in tree["README.md"].decode()


@pytest.mark.slow
def test_a_pulled_report_is_its_publishers_claim(
    registry: Registry, base: Base, reported: Version, hub: HubServer
) -> None:
    publish_to_hub(registry, reported, repository="x/y", samples=True)
    pulled = pull_from_hub(registry, "x/y", Destination(adapter="globex/there", base=base, actor="t"))
    assert pulled.digest == reported.digest
    assert {name: path.read_bytes() for name, path in registry.files(pulled).items() if name.startswith("report/")} == {
        f"report/{name}": content for name, content in FILES.items()
    }
    assert (is_imported(reported), is_imported(pulled)) == (False, True)
    publish_to_hub(registry, pulled, repository="x/again")
    assert "came with the version" in hub.repositories["x/again"].commits[-1].tree["README.md"].decode()


@pytest.mark.slow
def test_what_is_wrong_with_a_published_report_is_left_out_and_written_down(
    registry: Registry, base: Base, tmp_path: Path, hub: HubServer
) -> None:
    folder = make_adapter(tmp_path / "a")
    tree = {path.name: path.read_bytes() for path in folder.iterdir()}
    tree |= {
        "report/report.md": b"x" * (LIMITS["report/report.md"] + 1),
        "report/loss.png": b"<script>",
        "report/report.json": b"{}",
        "report/other.html": b"<script>",
    }
    hub.add("x/y", tree)
    pulled = pull_from_hub(registry, "x/y", Destination(adapter="a/b", base=base, actor="t"))
    assert {e.path for e in pulled.files if e.path.startswith("report/")} == {"report/report.json"}
    lost = pulled.manifest["origin"]["report_left_out"]
    assert set(lost) == {"report/report.md", "report/loss.png"}
    assert lost["report/loss.png"] == "is not a PNG"
    # Too large was seen before it was fetched.
    assert not [request for request in hub.requests if "GET" in request and "report.md" in request]
    assert list(registry.home.staging.iterdir()) == []
