"""Owns taking a base from a folder as transformers saves it; refuses pickled weights and remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tunery.registry.errors import ArtifactRefused

__all__ = ["fill", "take"]

WANTED = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""What a base may consist of; everything else in a folder is left behind."""


def fill(reference: str, folder: Path) -> None:
    """Copy the base in the folder `reference` into `folder`."""
    take(Path(reference).expanduser(), folder)


def take(source: Path, folder: Path) -> None:
    """Copy what makes a base, check it, and give it a fast tokenizer if it has none."""
    for pattern in WANTED:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    check(folder, str(source))
    if not (folder / "tokenizer.json").exists():
        _make_fast_tokenizer(folder, str(source))


def check(folder: Path, title: str) -> None:
    """Refuse what is no base, and what could run code."""
    if not (folder / "config.json").exists():
        raise ArtifactRefused(
            f"{title} has no config.json: it is not a model as transformers saves it", code="not_a_base"
        )
    if not any(folder.glob("*.safetensors")):
        raise ArtifactRefused(
            f"{title} has no *.safetensors: pickled weights are never read; convert them with transformers' "
            "save_pretrained first",
            code="artifact_pickled",
        )
    config = json.loads((folder / "config.json").read_text())
    if config.get("auto_map"):
        raise ArtifactRefused(
            f"{title} asks for code of its own (auto_map), which is never run", code="artifact_unsafe"
        )
    if config.get("quantization_config"):
        raise ArtifactRefused(
            f"{title} is already quantized; add the full-precision model, Tunery quantizes it as it is served",
            code="unsupported_base",
        )


def _make_fast_tokenizer(folder: Path, title: str) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ArtifactRefused(f"{title} has no tokenizer that can be loaded: {error}", code="not_a_base") from error
