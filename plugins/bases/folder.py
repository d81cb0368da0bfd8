"""Import a base from a folder as transformers saves it: its weights, configuration and tokenizer are copied, nothing
else."""

from __future__ import annotations

import shutil
from pathlib import Path

from tunery.plugins.bases.validation import INDEX, SETTINGS, check_base, check_config, weight_files
from tunery.registry.errors import ArtifactRefused

__all__ = ["copy_base", "fill"]


def fill(reference: str, folder: Path) -> str:
    """Copy the base in the folder `reference` into `folder`."""
    copy_base(Path(reference).expanduser(), folder)
    return f"copied from the folder {reference}"


def copy_base(source: Path, folder: Path) -> None:
    """Copy the base in `source` into `folder`, convert a slow tokenizer to a fast one, and check the result."""
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
