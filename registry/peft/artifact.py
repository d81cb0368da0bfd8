"""Owns what may enter the registry: PEFT LoRA folders in safetensors that fit their base. Refuses everything else, by name.

Nothing is ever unpickled and no code of an artifact runs; see `safetensors_header` for what is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from tunery.registry.errors import ArtifactRefused, StorageFailed
from tunery.registry.peft.config import (
    CONFIG,
    check_config,
    is_target,
    is_vocabulary,
    is_whole,
    rank_of,
    read_config,
    token_rows_of,
)
from tunery.registry.peft.safetensors_header import TensorEntry, nonfinite_tensor, read_header
from tunery.registry.peft.tensor_names import PREFIX, unknown_parameter
from tunery.registry.records import Base

__all__ = ["CONFIG", "WEIGHTS", "base_shapes", "check_artifact", "files_of"]

WEIGHTS = "adapter_model.safetensors"

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".h5", ".msgpack")
_CODE = (".py", ".pyc", ".so", ".dll", ".sh")
HEAD = "lm_head.weight"
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
    _check_tensors(headers[WEIGHTS], config, _parameters_of(base))
    for name, header in headers.items():
        bad = nonfinite_tensor(files[name], header)
        if bad is not None:
            raise ArtifactRefused(
                f"{name}: {bad} holds NaN, infinity, or a number too large for bfloat16; train it again",
                code="artifact_nonfinite",
            )
    return config


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every parameter of a base by name, with a tied output head under its own name as well."""
    shapes = _saved_shapes(folder)
    if not any(name.startswith(_WHOLE) for name in shapes):
        # Saved from the model without its head, as GPT-2 was.
        shapes |= {f"{whole}{name}": shape for name, shape in shapes.items() for whole in _WHOLE}
    embedding = next((shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS)), None)
    if embedding is not None:
        shapes.setdefault(HEAD, embedding)
    return shapes


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: entry.shape for path in sorted(folder.glob("*.safetensors")) for name, entry in read_header(path).items()
    }


class _Parameters(msgspec.Struct, frozen=True):
    """A base's parameters by name; `tied` says that the output head shares the embedding's weight."""

    base: str
    shapes: Shapes
    tied: bool


def _parameters_of(base: Base) -> _Parameters:
    folder = Path(base.path)
    saved = _saved_shapes(folder)
    if not saved:
        raise StorageFailed(
            f"the base {base.name} is no longer in {base.path}; take it in again: tunery bases add {base.source}",
            code="base_missing",
        )
    return _Parameters(base.name, base_shapes(folder), HEAD not in saved)


def _check_tensors(entries: Mapping[str, TensorEntry], config: Mapping[str, Any], base: _Parameters) -> None:
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
        name = key.removeprefix(PREFIX)
        match = _ROLE.fullmatch(name)
        if name.endswith(_TOKEN_ROWS):
            _check_rows(key, name.removesuffix(_TOKEN_ROWS), entry.shape, config, base)
        elif match is None:
            _check_whole(key, name.replace(".base_layer.", "."), entry.shape, config, base)
        else:
            role = match["role"] + (".bias" if match["leaf"] == "bias" else "")
            parts.setdefault(match["module"], {})[role] = entry.shape
    if not parts:
        raise ArtifactRefused(f"{WEIGHTS} holds no LoRA weights", code="artifact_incomplete")
    for module, roles in parts.items():
        _check_pair(module, roles, config, base)


def _check_whole(key: str, name: str, shape: Shape, config: Mapping[str, Any], base: _Parameters) -> None:
    wanted = base.shapes.get(name)
    if wanted is None:
        raise _unknown(name, base)
    if wanted != shape:
        raise _other_size(key, shape, wanted, base)
    if not is_whole(name, config):
        raise _unused(key, "modules_to_save")


def _check_rows(key: str, module: str, shape: Shape, config: Mapping[str, Any], base: _Parameters) -> None:
    """One row of the module's weight for each token id that the configuration names."""
    weight, tokens = base.shapes.get(f"{module}.weight"), token_rows_of(module, config)
    if weight is None or len(weight) != 2:
        raise _misfit(key, shape, weight, base)
    if tokens is None:
        raise _unused(key, "trainable_token_indices")
    if shape != (len(tokens), weight[1]):
        raise _misfit(f"{key} for {len(tokens)} tokens", shape, weight, base)
    added = sum(token >= weight[0] for token in tokens)
    if added:
        raise _resized(key, added, weight[0], base)


def _check_pair(module: str, roles: Mapping[str, Shape], config: Mapping[str, Any], base: _Parameters) -> None:
    embedding = "lora_embedding_A" in roles
    weight = base.shapes.get(f"{module}.weight")
    a, b = (roles.get(f"lora_embedding_{half}" if embedding else f"lora_{half}") for half in "AB")
    if weight is None:
        raise _unknown(f"{module}.weight", base)
    if a is None or b is None:
        raise ArtifactRefused(f"{module} has only one half of its low-rank pair", code="artifact_incomplete")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
        raise ArtifactRefused(f"{module}: lora_A {a} and lora_B {b} do not make a product", code="artifact_incomplete")
    _check_fit(module, (b[0], a[1]), weight, turned=embedding, config=config, base=base)
    for role, switch in (("lora_magnitude_vector", "use_dora"), ("lora_B.bias", "lora_bias")):
        if role in roles and prod(roles[role]) != b[0]:
            raise _misfit(f"{module}.{role}", roles[role], (b[0],), base)
        if role in roles and not config.get(switch):
            raise ArtifactRefused(
                f"{module}.{role} would not be used: {CONFIG} does not say {switch}; save the adapter again",
                code="artifact_incomplete",
            )
    _check_dora(module, roles, config, embedding=embedding)
    _check_rank(module, a[0], config, base)


def _check_fit(
    module: str, fits: Shape, weight: Shape, *, turned: bool, config: Mapping[str, Any], base: _Parameters
) -> None:
    """An embedding is its own transpose (A is [r, vocabulary], B is [hidden, r]), and so are GPT-2's linear layers, but for its head."""
    either = (fits, fits[::-1]) if config.get("fan_in_fan_out") and not turned else (fits[::-1] if turned else fits,)
    if weight not in either:
        raise _other_size(module, either[0], weight, base)


def _check_dora(module: str, roles: Mapping[str, Shape], config: Mapping[str, Any], *, embedding: bool) -> None:
    if not config.get("use_dora"):
        return
    if embedding:
        raise ArtifactRefused(
            f"{module} is an embedding with use_dora, which the engine does not serve; train it without",
            code="unsupported_adapter",
        )
    if "lora_magnitude_vector" not in roles:
        raise ArtifactRefused(
            f"{module} has no lora_magnitude_vector, and {CONFIG} says use_dora; save the adapter again",
            code="artifact_incomplete",
        )


def _check_rank(module: str, rank: int, config: Mapping[str, Any], base: _Parameters) -> None:
    if _shares_embedding(module, config, base):
        return
    if not is_target(module, config):
        raise _unused(module, "target_modules")
    wanted = rank_of(module, config)
    if rank != wanted:
        raise ArtifactRefused(
            f"{module} has rank {rank}, and {CONFIG} says {wanted}: its scale would be wrong; save the adapter again",
            code="artifact_incomplete",
        )


def _shares_embedding(module: str, config: Mapping[str, Any], base: _Parameters) -> bool:
    """Whether a module is a head whose pair is the embedding's, which PEFT saves a second time and names nowhere."""
    return f"{module}.weight" == HEAD and base.tied and bool(config.get("ensure_weight_tying"))


def _unused(name: str, field: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"{name} would not be used: {CONFIG} does not name it in {field}; save the adapter again",
        code="artifact_incomplete",
    )


def _misfit(name: str, shape: Shape, wanted: Shape | None, base: _Parameters) -> ArtifactRefused:
    has = "has no such parameter" if wanted is None else f"has {wanted}"
    return ArtifactRefused(
        f"{name} {shape} does not fit {base.base}, which {has}: it was trained on another base", code="wrong_base"
    )


def _other_size(name: str, shape: Shape, wanted: Shape, base: _Parameters) -> ArtifactRefused:
    """The error of a tensor that has another number of rows than the base's, or another width."""
    if len(wanted) == len(shape) == 2 and shape[1] == wanted[1] and is_vocabulary(name):
        return _resized(name, shape[0] - wanted[0], wanted[0], base)
    return _misfit(name, shape, wanted, base)


def _resized(name: str, more: int, rows: int, base: _Parameters) -> ArtifactRefused:
    """Tokens were added before training (or padding was cut off), so the adapter's vocabulary is not the base's."""
    counted = f"{abs(more):,} {'token was' if abs(more) == 1 else 'tokens were'}"
    changed = f"{counted} added to" if more > 0 else f"{counted} cut off"
    return ArtifactRefused(
        f"{name}: {changed} the {rows:,} of {base.base} before training, and adapters are served on the base's own "
        "vocabulary. Save the base with its vocabulary changed, take that in (tunery bases add FOLDER) and import on it, "
        "or train without changing the vocabulary",
        code="vocabulary_changed",
    )


def _unknown(parameter: str, base: _Parameters) -> ArtifactRefused:
    why = unknown_parameter(parameter, base.shapes)
    if why is not None:
        return ArtifactRefused(f"{base.base} has no {parameter}: {why}", code="artifact_incomplete")
    return ArtifactRefused(
        f"{parameter} does not fit {base.base}, which has no such parameter: it was trained on another base",
        code="wrong_base",
    )
