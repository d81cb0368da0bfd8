"""`tunery files uses` and `tunery adapters lineage` as processes: what became of a file, and where
a version comes from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.cli.test_adapters import tunery
from tests.registry.artifacts import make_adapter, make_base
from tunery.registry import NewVersion
from tunery.registry.home import Home
from tunery.registry.registry import Registry

GONE = "f" * 64
"""The digest of a parent that is not here."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


@pytest.fixture
def filled(home: Home, registry: Registry, rows: Path, tmp_path: Path) -> Home:
    """acme/support@1 (from a version that is not here), and @2 from @1 with one file held out."""
    base = registry.add_base(make_base(tmp_path / "base"))
    used = {"name": "rows.jsonl", "sha256": hashlib.sha256(rows.read_bytes()).hexdigest(), "rows": 1}
    other = {"name": "more.jsonl", "sha256": "0" * 64, "rows": 7}
    manifests: list[dict[str, Any]] = [
        {
            "data": [used], "validation": False, "parent": {"version": "acme/lost@3", "digest": GONE}, "seed": 5,
            "trainer": "lora", "plugin": "tunery 0.1.0", "job": "job-1", "template": "e" * 64, "template_text": "{{ x }}\x1b",
            "parameters": {"learning_rate": 0.01, "r": 16, "schedule": "cosine", "warmup": 0.5},
            "choices": [{"name": "warmup", "value": 0.5}], "packages": {"torch": "2"}, "hardware": {"cores": 2, "gpu": None},
            "data_check": {"allowed": ["duplicate"]},
        },
        {"data": [other, used], "validation": True},
    ]  # fmt: skip
    for seed, manifest in enumerate(manifests):
        if seed == 1:
            manifest["parent"] = {"version": "acme/support@1", "digest": registry.resolve("acme/support@1").digest}
        folder = make_adapter(tmp_path / str(seed), seed=seed)
        registry.publish(
            NewVersion(
                adapter="acme/support",
                folder=folder,
                base=base,
                method="lora",
                manifest=manifest,
                metrics={},
                actor="t",
            )
        )
    return home


@pytest.mark.slow
def test_uses_of_a_file_are_found_by_its_content_wherever_it_is(filled: Home, rows: Path) -> None:
    moved = rows.rename(rows.with_name("renamed.jsonl"))
    table = tunery(filled, "files", "uses", str(moved)).stdout.splitlines()
    assert [line.split("\t")[:3] for line in table[1:]] == [
        ["acme/support@1", "train", "rows.jsonl"], ["acme/support@2", "held-out", "rows.jsonl"]
    ]  # fmt: skip
    sha256 = hashlib.sha256(moved.read_bytes()).hexdigest()
    for written in (sha256, sha256[:8].upper()):
        uses = json.loads(tunery(filled, "files", "uses", written, "--json").stdout)
        assert [(use["version"], use["role"], use["sha256"]) for use in uses] == [
            ("acme/support@1", "train", sha256), ("acme/support@2", "held-out", sha256)
        ]  # fmt: skip


def test_a_file_that_nothing_was_made_with_is_no_error_and_one_that_is_not_there_is(
    filled: Home, tmp_path: Path
) -> None:
    (tmp_path / "new.jsonl").write_text("{}\n")
    done = tunery(filled, "files", "uses", str(tmp_path / "new.jsonl"))
    assert (done.returncode, done.stdout) == (0, "")
    assert "no version was made with" in done.stderr
    missing = tunery(filled, "files", "uses", "no-such-file.jsonl")
    assert missing.returncode == 3
    assert "there is no file no-such-file.jsonl" in missing.stderr


def test_lineage_is_a_tree_back_to_what_is_not_here(filled: Home) -> None:
    tree = tunery(filled, "adapters", "lineage", "acme/support@2").stdout.splitlines()
    assert tree[0].startswith("acme/support@2  ")
    text = "\n".join(line.lstrip("│├└─ ") for line in tree)
    for line in (
        "more.jsonl  000000000000  7 rows, train",
        "acme/support@1  ",
        "seed 5",
        "trainer lora of tunery 0.1.0, job-1",
        "template eeeeeeeeeeee",
        "errors in the data that were allowed: duplicate",
        "packages: torch 2",
        "hardware: cores 2",
        "parameters: learning_rate 0.01, r 16, warmup 0.5 (--full: all)",
        f"from acme/lost@3  {GONE[:12]}  (not here)",
    ):
        assert line in text, text
    assert text.count("1 rows, held-out") == text.count("1 rows, train") == 1


def test_full_lineage_has_every_parameter_and_the_template(filled: Home) -> None:
    done = tunery(filled, "adapters", "lineage", "acme/support@1", "--full").stdout
    assert "schedule = cosine" in done
    assert GONE in done
    assert "{{ x }}\u241b" in done, "a control character must not reach the terminal"


def test_lineage_as_json(filled: Home) -> None:
    newest, first, lost = json.loads(tunery(filled, "adapters", "lineage", "acme/support@2", "--json").stdout)
    assert [each["version"] for each in (newest, first, lost)] == ["acme/support@2", "acme/support@1", "acme/lost@3"]
    assert [each["here"] for each in (newest, first, lost)] == [True, True, False]
    assert [(file["name"], file["role"]) for file in newest["data"]] == [
        ("more.jsonl", "train"),
        ("rows.jsonl", "held-out"),
    ]
    assert (first["seed"], first["parameters"]["schedule"], lost["digest"]) == (5, "cosine", GONE)


def test_lineage_of_what_was_imported_says_from_where(filled: Home, registry: Registry, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "pulled", seed=9)
    origin = {"hub": "org/name", "commit": "abc"}
    registry.publish(
        NewVersion(
            adapter="acme/pulled",
            folder=folder,
            base=registry.bases()[0],
            method="imported",
            manifest={"origin": origin},
            metrics={},
            actor="t",
        )
    )
    tree = tunery(filled, "adapters", "lineage", "acme/pulled").stdout
    assert "imported: hub org/name, commit abc" in tree
    assert len(tree.splitlines()) == 3
