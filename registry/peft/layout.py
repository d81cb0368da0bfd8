"""PEFT's file layout for LoRA: what its two files are called, and what each tensor's key means.

Keys are interpreted only here. `M` stands for a module of the base, `[out, in]` for the shape of its weight:

    base_model.model.M.lora_A.weight                          A [r, in]
    base_model.model.M.lora_B.weight                          B [out, r], so that ΔW = scale · B A
    base_model.model.M.lora_B.bias                            [out], with lora_bias
    base_model.model.M.lora_magnitude_vector                  [out], with use_dora (arXiv 2402.09353)
    base_model.model.M.lora_embedding_A                       A [r, vocabulary], so that ΔEᵀ = scale · B A
    base_model.model.M.lora_embedding_B                       B [hidden, r]
    base_model.model.M.token_adapter.trainable_tokens_delta   rows [n, hidden] of trainable_token_indices
    base_model.model.M.weight, base_model.model.M.bias        a whole parameter in place of the base's
    base_model.model.M.base_layer.bias                        the same of a module that has a low-rank pair
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from tunery.registry.errors import ArtifactRefused

__all__ = [
    "CONFIG",
    "PARTS_AFTER_ROLE",
    "PREFIX",
    "WEIGHTS",
    "AdapterLayout",
    "PairKeys",
    "base_parameter",
    "pair_keys",
    "parameter_key",
    "read_layout",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

PARTS_AFTER_ROLE = {
    "lora_A": 1,
    "lora_B": 1,
    "lora_embedding_A": 0,
    "lora_embedding_B": 0,
    "lora_magnitude_vector": 1,
    "trainable_tokens_delta": 0,
}
"""How many parts of a key follow the one that says what a tensor is; one more is the name of the adapter."""

_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"  # noqa: S105 - a tensor's name
_BASE_LAYER = ".base_layer."
_PAIR_PART = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<embedding>embedding_)?(?P<half>[AB])|(?P<magnitude>lora_magnitude_vector))"
    r"(?:\.default)?(?:\.(?P<leaf>weight|bias))?"
)


class PairKeys(msgspec.Struct, kw_only=True):
    """The keys of one module's low-rank pair; None for a tensor that the file does not have.

    `embedding` says that the pair is stored as an embedding's: A [r, vocabulary] and B [hidden, r].
    """

    embedding: bool
    a: str | None = None
    b: str | None = None
    bias: str | None = None
    magnitude: str | None = None


class AdapterLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of an adapter's tensors by what they are.

    `pairs` and `token_rows` are by module of the base, `parameters` by the name of the base's parameter that is
    replaced.
    """

    pairs: dict[str, PairKeys]
    token_rows: dict[str, str]
    parameters: dict[str, str]


def read_layout(keys: Iterable[str]) -> AdapterLayout:
    """Say what each tensor of an adapter is; anything that is not part of a pair or a token's row is a whole parameter.

    Raise ArtifactRefused (artifact_incomplete) where two tensors have the same meaning.
    """
    layout = AdapterLayout(pairs={}, token_rows={}, parameters={})
    for key in keys:
        name = key.removeprefix(PREFIX)
        part = _PAIR_PART.fullmatch(name)
        if name.endswith(_TOKEN_ROWS):
            _put(layout.token_rows, name.removesuffix(_TOKEN_ROWS), key)
        elif part is not None and (slot := _slot(part)) is not None:
            _put_part(layout.pairs, part["module"], slot, bool(part["embedding"]), key)
        else:
            _put(layout.parameters, name.replace(_BASE_LAYER, "."), key)
    return layout


def pair_keys(module: str, *, embedding: bool = False) -> tuple[str, str]:
    """The keys under which PEFT saves A and B of a module's low-rank pair."""
    if embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def parameter_key(parameter: str, *, adapted: bool = False) -> str:
    """The key under which PEFT saves a whole parameter; `adapted` says that its module has a low-rank pair too."""
    module, _, leaf = parameter.rpartition(".")
    return f"{PREFIX}{module}{_BASE_LAYER}{leaf}" if adapted else f"{PREFIX}{parameter}"


def base_parameter(name: str) -> str:
    """The base's parameter that a tensor changes; `name` is its key without PREFIX, wrappers and adapter's name."""
    module, role, _ = re.sub(r"\.(token_adapter|lora_\w+).*$", "\0", name).partition("\0")
    return f"{module}.weight" if role else name.replace(_BASE_LAYER, ".")


def _slot(part: re.Match[str]) -> str | None:
    """The field of PairKeys that a key is; None for a bias that PEFT does not have."""
    if part["leaf"] == "bias":
        return "bias" if part["half"] == "B" and not part["embedding"] else None
    return "magnitude" if part["magnitude"] else part["half"].lower()


def _put(keys: dict[str, str], name: str, key: str) -> None:
    if name in keys:
        raise _twice(keys[name], key, name)
    keys[name] = key


def _put_part(pairs: dict[str, PairKeys], module: str, slot: str, embedding: bool, key: str) -> None:
    pair = pairs.setdefault(module, PairKeys(embedding=embedding))
    if slot in ("a", "b"):
        if pair.embedding != embedding and (other := pair.a or pair.b) is not None:
            raise _twice(other, key, module)
        pair.embedding = embedding
    if (other := getattr(pair, slot)) is not None:
        raise _twice(other, key, module)
    setattr(pair, slot, key)


def _twice(first: str, second: str, name: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"{first} and {second} are two tensors for one place in {name}; save the adapter again",
        code="artifact_incomplete",
    )
