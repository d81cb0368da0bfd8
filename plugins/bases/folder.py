"""Owns taking a base from a folder as transformers saves it: what makes a base is copied, all else is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunery.plugins.bases.validation import INDEX, SETTINGS, check_base, check_config, weight_files
from tunery.registry.errors import ArtifactRefused

__all__ = ["fill", "take"]


def fill(reference: str, folder: Path) -> str:
    """Copy the base in the folder `reference` into `folder`."""
    take(Path(reference).expanduser(), folder)
    return f"copied from the folder {reference}"


def take(source: Path, folder: Path) -> None:
    """Copy what makes a base, give it a fast tokenizer if it has none, and check it."""
    check_config(source, str(source))
    for name in (*SETTINGS, *weight_files(source, str(source)), INDEX):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer.json").exists():
        _make_fast_tokenizer(folder, str(source))
    check_base(folder, str(source))


def _make_fast_tokenizer(folder: Path, title: str) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # each kind of tokenizer raises its own
        raise ArtifactRefused(f"{title} has no tokenizer that can be loaded: {error}", code="not_a_base") from error
