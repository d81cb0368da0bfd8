"""Check a base before it is kept, whichever source it came from: pickles, remote code and incomplete models are
refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunery.plugins.bases.architectures import refuse_architecture
from tunery.registry.errors import ArtifactRefused, some_of
from tunery.registry.peft.safetensors_header import read_header

__all__ = ["INDEX", "SETTINGS", "check_base", "check_config", "weight_files"]

_SHOWN = 5
"""Files that an error names."""
SETTINGS = (
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
"""Files that a base may have besides its weights; all others are removed."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_base(folder: Path, title: str) -> None:
    """Remove all files in `folder` that do not belong to a base.

    Raises ArtifactRefused where the base is incomplete or unsafe.
    """
    check_config(folder, title)
    weights = weight_files(folder, title)
    for path in list(folder.iterdir()):
        if path.name not in {*SETTINGS, *weights, INDEX}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in weights:
        read_header(folder / name)
    _check_tokenizer(folder, title)


def check_config(folder: Path, title: str) -> dict[str, Any]:
    """The base's config.json.

    Raises ArtifactRefused where it alone rules the base out, so that no weights are downloaded for nothing.
    """
    config = _read_object(folder / "config.json", title)
    _refuse_code(config, title)
    refuse_architecture(config, title)
    if config.get("quantization_config"):
        raise ArtifactRefused(
            f"{title} is already quantized; add the full-precision model, Tunery quantizes it as it is served",
            code="unsupported_base",
        )
    return config


def weight_files(folder: Path, title: str) -> list[str]:
    """Names of the weight files, from the index or, without one, the single file.

    Raises ArtifactRefused where one is missing.
    """
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        mapped = _read_object(folder / INDEX, title).get("weight_map")
        names = sorted({str(name) for name in mapped.values()}) if isinstance(mapped, dict) else []
    # A name with a folder in it could point outside the base.
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ArtifactRefused(
            f"{title} has a {INDEX} that does not name *.safetensors files beside it", code="not_a_base"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == [WEIGHTS]:
        raise ArtifactRefused(
            f"{title} has no {WEIGHTS}: pickled weights are never read; convert them with transformers' "
            "save_pretrained first",
            code="artifact_pickled",
        )
    if missing:
        raise ArtifactRefused(
            f"{title} lacks {some_of(missing, _SHOWN)}, which its {INDEX} names: copy or download it again",
            code="artifact_truncated",
        )
    return names


def _check_tokenizer(folder: Path, title: str) -> None:
    from tokenizers import Tokenizer

    if (folder / "tokenizer_config.json").exists():
        _refuse_code(_read_object(folder / "tokenizer_config.json", title), title)
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ArtifactRefused(f"{title} has no tokenizer that can be loaded: {error}", code="not_a_base") from error


def _refuse_code(settings: dict[str, Any], title: str) -> None:
    if settings.get("auto_map"):
        raise ArtifactRefused(
            f"{title} asks for code of its own (auto_map), which is never run", code="artifact_unsafe"
        )


def _read_object(path: Path, title: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactRefused(
            f"{title} has no {path.name}: it is not a model as transformers saves it", code="not_a_base"
        ) from error
    except ValueError as error:
        raise ArtifactRefused(f"{title}: {path.name} is not JSON: {error}", code="not_a_base") from error
    if not isinstance(value, dict):
        raise ArtifactRefused(f"{title}: {path.name} is not a JSON object", code="not_a_base")
    return value
