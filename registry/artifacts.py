"""Owns what may enter the registry: PEFT LoRA folders in safetensors that fit their base. Refuses everything else, by name.

Nothing is ever unpickled and no code of an artifact runs; see `safetensors_header` for what is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from tunery.registry.errors import ArtifactRefused, StorageFailed
from tunery.registry.peft_config import (
    CONFIG,
    check_config,
    is_target,
    is_whole,
    rank_of,
    read_config,
    token_rows_of,
)
from tunery.registry.records import Base
from tunery.registry.safetensors_header import TensorEntry, nonfinite_tensor, read_header

__all__ = ["CONFIG", "WEIGHTS", "base_shapes", "check_artifact", "files_of"]

WEIGHTS = "adapter_model.safetensors"

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so", ".dll", ".sh")
_PREFIX = "base_model.model."
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"  # noqa: S105 - a tensor's name
_ROLE = re.compile(
    r"(?P<module>.+?)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.(?P<leaf>weight|bias))?"
)

_FLOATS = ("F16", "BF16", "F32", "F64")

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a version by relative POSIX path; raise ArtifactRefused for pickles, code, and links out of the folder."""
    root, found = folder.resolve(), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():
            raise ArtifactRefused(f"{name!r} is not a name that every system can read", code="artifact_unsafe")
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


_WHOLE = ("model.", "transformer.")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
_HEADS = ("lm_head.weight",)


def check_artifact(
    folder: Path, *, base: Base, others: Iterable[Base] = (), trust_base: bool = False
) -> dict[str, Any]:
    """The adapter's configuration, when the folder is a PEFT LoRA that fits `base`; raise ArtifactRefused otherwise.

    `others` and `trust_base` are as in `check_config`.
    """
    files = files_of(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise ArtifactRefused(
                f"{folder.name} has no {name}: it is not a PEFT adapter saved as safetensors",
                code="artifact_incomplete",
            )
    config = read_config(files[CONFIG])
    check_config(config, base=base, others=others, trust_base=trust_base)
    headers = {name: read_header(path) for name, path in files.items() if path.suffix == ".safetensors"}
    shapes = base_shapes(Path(base.path))
    if not shapes:
        raise StorageFailed(
            f"the base {base.name} is no longer in {base.path}; take it in again: tunery bases add {base.source}",
            code="base_missing",
        )
    _check_tensors(headers[WEIGHTS], config, shapes, base.name)
    for name, header in headers.items():
        bad = nonfinite_tensor(files[name], header)
        if bad is not None:
            raise ArtifactRefused(f"{name}: {bad} holds NaN or infinity; train it again", code="artifact_nonfinite")
    return config


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every parameter of a base by name, with a tied output head under its own name as well."""
    shapes = {
        name: entry.shape for path in sorted(folder.glob("*.safetensors")) for name, entry in read_header(path).items()
    }
    if not any(name.startswith(_WHOLE) for name in shapes):
        # Saved from the model without its head, as GPT-2 was.
        shapes |= {f"{whole}{name}": shape for name, shape in shapes.items() for whole in _WHOLE}
    embedding = next((shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)), None)
    if embedding is not None:
        for head in _HEADS:
            shapes.setdefault(head, embedding)
    return shapes


def _check_tensors(entries: Mapping[str, TensorEntry], config: Mapping[str, Any], base: Shapes, base_name: str) -> None:
    """Every tensor belongs to a module of the base, has the shape it needs there, and would be used."""
    parts: dict[str, dict[str, Shape]] = {}
    if config.get("trainable_token_indices") and not any(key.endswith(_TOKEN_ROWS) for key in entries):
        raise ArtifactRefused(
            f"{CONFIG} has trainable_token_indices, and {WEIGHTS} no such rows; save the adapter again",
            code="artifact_incomplete",
        )
    for key, entry in entries.items():
        if entry.dtype not in _FLOATS:
            raise ArtifactRefused(
                f"{key} is {entry.dtype}; adapters hold {', '.join(_FLOATS)}", code="unsupported_adapter"
            )
        name = key.removeprefix(_PREFIX)
        match = _ROLE.fullmatch(name)
        if name.endswith(_TOKEN_ROWS):
            _check_rows(key, name.removesuffix(_TOKEN_ROWS), entry.shape, config, base, base_name)
        elif match is None:
            _check_whole(key, name.replace(".base_layer.", "."), entry.shape, config, base, base_name)
        else:
            role = match["role"] + (".bias" if match["leaf"] == "bias" else "")
            parts.setdefault(match["module"], {})[role] = entry.shape
    if not parts:
        raise ArtifactRefused(f"{WEIGHTS} holds no LoRA weights", code="artifact_incomplete")
    for module, roles in parts.items():
        _check_pair(module, roles, config, base, base_name)


def _check_whole(key: str, name: str, shape: Shape, config: Mapping[str, Any], base: Shapes, base_name: str) -> None:
    if base.get(name) != shape:
        raise _misfit(key, shape, base.get(name), base_name)
    if not is_whole(name, config):
        raise _unused(key, "modules_to_save")


def _check_rows(key: str, module: str, shape: Shape, config: Mapping[str, Any], base: Shapes, base_name: str) -> None:
    """One row of the module's weight for each token id that the configuration names."""
    weight, tokens = base.get(f"{module}.weight"), token_rows_of(module, config)
    if weight is None or len(weight) != 2:
        raise _misfit(key, shape, weight, base_name)
    if tokens is None:
        raise _unused(key, "trainable_token_indices")
    if shape != (len(tokens), weight[1]) or max(tokens, default=0) >= weight[0]:
        raise _misfit(f"{key} for {len(tokens)} tokens up to {max(tokens, default=0)}", shape, weight, base_name)


def _check_pair(
    module: str, roles: Mapping[str, Shape], config: Mapping[str, Any], base: Shapes, base_name: str
) -> None:
    embedding = "lora_embedding_A" in roles
    weight = base.get(f"{module}.weight")
    a, b = (roles.get(f"lora_embedding_{half}" if embedding else f"lora_{half}") for half in "AB")
    if weight is None:
        raise _misfit(module, a or b or (), None, base_name)
    if a is None or b is None:
        raise ArtifactRefused(f"{module} has only one half of its low-rank pair", code="artifact_incomplete")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
        raise ArtifactRefused(f"{module}: lora_A {a} and lora_B {b} do not make a product", code="artifact_incomplete")
    # An embedding is its own transpose (A is [r, vocabulary], B is [hidden, r]), and so are GPT-2's linear layers, but for its head.
    turned = embedding or bool(config.get("fan_in_fan_out"))
    fits = (b[0], a[1])
    if weight not in ((fits[::-1], fits) if turned else (fits,)):
        raise _misfit(module, fits, weight, base_name)
    for role in ("lora_magnitude_vector", "lora_B.bias"):
        if role in roles and prod(roles[role]) != b[0]:
            raise _misfit(f"{module}.{role}", roles[role], (b[0],), base_name)
    _check_rank(module, a[0], config)


def _check_rank(module: str, rank: int, config: Mapping[str, Any]) -> None:
    if not is_target(module, config):
        raise _unused(module, "target_modules")
    wanted = rank_of(module, config)
    if rank != wanted:
        raise ArtifactRefused(
            f"{module} has rank {rank}, and {CONFIG} says {wanted}: its scale would be wrong; save the adapter again",
            code="artifact_incomplete",
        )


def _unused(name: str, field: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"{name} would not be used: {CONFIG} does not name it in {field}; save the adapter again",
        code="artifact_incomplete",
    )


def _misfit(name: str, shape: Shape, wanted: Shape | None, base_name: str) -> ArtifactRefused:
    has = "has no such parameter" if wanted is None else f"has {wanted}"
    return ArtifactRefused(
        f"{name} {shape} does not fit {base_name}, which {has}: it was trained on another base", code="wrong_base"
    )
