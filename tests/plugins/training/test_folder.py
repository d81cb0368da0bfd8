"""A job's folder: files are replaced whole, and only what a running job needs is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunery.plugins.training.folder import JobFolder, replace_file


def test_a_file_keeps_its_content_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control"
    replace_file(path, b"pause")

    def full(self: Path, data: bytes) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"cancel")
    assert path.read_bytes() == b"pause"


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    folder.write_manifest({"seed": 1, "quote": {"minutes": 0.5}})
    assert folder.read_manifest() == {"seed": 1, "quote": {"minutes": 0.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_clearing_keeps_what_is_read_after_the_job(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    for path in (folder.checkpoint, folder.parent, folder.report, folder.new_output()):
        path.mkdir(exist_ok=True)
    for path in (folder.best_weights, folder.base_results, folder.objective_state, folder.events, folder.request):
        path.write_text("x")
    folder.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"report", "metrics.jsonl", "request.json"}
