"""Owns what may enter the registry: PEFT LoRA folders in safetensors that fit their base. Refuses everything else, by name.

Nothing is ever unpickled and no code of an artifact runs; see `safetensors_header` for what is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.registry.errors import ArtifactRefused
from tunery.registry.records import Base
from tunery.registry.safetensors_header import nonfinite_tensor, read_header

__all__ = ["CONFIG", "WEIGHTS", "base_shapes", "check_artifact", "files_of"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIGEST_KEY = "tunery_base_digest"

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so", ".dll", ".sh")
_PREFIX = "base_model.model."
_ROLE = re.compile(
    r"(?P<module>.+?)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.(?P<leaf>weight|bias))?"
)

Shapes = Mapping[str, tuple[int, ...]]


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a version by relative POSIX path; raise ArtifactRefused for pickles, code, and links out of the folder."""
    root, found = folder.resolve(), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.resolve().is_relative_to(root):
            raise ArtifactRefused(f"{name} is a link out of its folder; copy the file itself", code="artifact_unsafe")
        if path.suffix.lower() in _PICKLED:
            raise ArtifactRefused(
                f"{name} is a pickle or another format that can run code; save the adapter as safetensors "
                "(PEFT: save_pretrained(..., safe_serialization=True))",
                code="artifact_pickled",
            )
        if path.suffix.lower() in _CODE:
            raise ArtifactRefused(
                f"{name} is code; a version holds weights and configuration only", code="artifact_unsafe"
            )
        if path.is_file():
            found[name] = path
    return found


def check_artifact(folder: Path, *, base: Base) -> dict[str, Any]:
    """The adapter's configuration, when the folder is a PEFT LoRA that fits `base`; raise ArtifactRefused otherwise."""
    files = files_of(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise ArtifactRefused(
                f"{folder.name} has no {name}: it is not a PEFT adapter saved as safetensors",
                code="artifact_incomplete",
            )
    config = _config(files[CONFIG])
    _check_config(config, base)
    for name, path in files.items():
        if path.suffix == ".safetensors":
            bad = nonfinite_tensor(path, read_header(path))
            if bad is not None:
                raise ArtifactRefused(f"{name}: {bad} holds NaN or infinity; train it again", code="artifact_nonfinite")
    shapes = {name: entry.shape for name, entry in read_header(files[WEIGHTS]).items()}
    _check_shapes(shapes, base_shapes(Path(base.path)), base.name)
    return config


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every parameter of a base by name, with a tied output head under its own name as well."""
    shapes = {
        name: entry.shape for path in sorted(folder.glob("*.safetensors")) for name, entry in read_header(path).items()
    }
    embedding = next((shape for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), None)
    if embedding is not None:
        shapes.setdefault("lm_head.weight", embedding)
    return shapes


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactRefused(f"{CONFIG} is not JSON: {error}", code="artifact_incomplete") from error
    if not isinstance(config, dict):
        raise ArtifactRefused(f"{CONFIG} is not a JSON object", code="artifact_incomplete")
    return config


def _check_config(config: Mapping[str, Any], base: Base) -> None:
    if config.get("peft_type") != "LORA":
        raise ArtifactRefused(
            f"peft_type {config.get('peft_type')!r} is not LORA; convert it (peft.convert_to_lora) or merge it first",
            code="unsupported_adapter",
        )
    if not _harmless_mapping(config.get("auto_mapping")):
        raise ArtifactRefused(
            "the configuration asks for custom code (auto_mapping), which is never run", code="artifact_unsafe"
        )
    recorded = config.get(DIGEST_KEY)
    if recorded is not None and recorded != base.digest:
        raise ArtifactRefused(
            f"it was trained on a base with digest {str(recorded)[:12]}, and {base.name} is {base.digest[:12]}; "
            "name the base it was trained on",
            code="wrong_base",
        )


def _harmless_mapping(mapping: Any) -> bool:
    """PEFT notes the base's class when it is told no task type; harmless as long as the class is transformers' own."""
    library = mapping.get("parent_library") if isinstance(mapping, dict) else None
    return not mapping or str(library).split(".")[0] == "transformers"


def _check_shapes(shapes: Shapes, base: Shapes, base_name: str) -> None:
    """Every tensor belongs to a module of the base and has the shape that module needs."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        name = key.removeprefix(_PREFIX)
        match = _ROLE.fullmatch(name)
        if match is None:
            whole = name.replace(".base_layer.", ".")
            if base.get(whole) != shape:
                raise _misfit(key, shape, base.get(whole), base_name)
        elif match["leaf"] != "bias":
            parts.setdefault(match["module"], {})[match["role"].replace("embedding_", "")] = shape
    if not parts:
        raise ArtifactRefused(f"{WEIGHTS} holds no LoRA weights", code="artifact_incomplete")
    for module, roles in parts.items():
        _check_pair(module, roles, base, base_name)


def _check_pair(module: str, roles: Mapping[str, tuple[int, ...]], base: Shapes, base_name: str) -> None:
    weight, a, b = base.get(f"{module}.weight"), roles.get("lora_A"), roles.get("lora_B")
    if weight is None:
        raise _misfit(module, a or b or (), None, base_name)
    if a is None or b is None:
        raise ArtifactRefused(f"{module} has only one half of its low-rank pair", code="artifact_incomplete")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
        raise ArtifactRefused(f"{module}: lora_A {a} and lora_B {b} do not make a product", code="artifact_incomplete")
    # An embedding is its own transpose: PEFT saves A as [r, vocabulary] and B as [hidden, r].
    if sorted((b[0], a[1])) != sorted(weight):
        raise _misfit(module, (b[0], a[1]), weight, base_name)


def _misfit(name: str, shape: tuple[int, ...], wanted: tuple[int, ...] | None, base_name: str) -> ArtifactRefused:
    has = "has no such parameter" if wanted is None else f"has {wanted}"
    return ArtifactRefused(
        f"{name} {shape} does not fit {base_name}, which {has}: it was trained on another base", code="wrong_base"
    )
