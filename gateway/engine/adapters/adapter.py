"""Owns reading a version's PEFT files into what the layers apply; refuses by name every PEFT feature it would not apply exactly.

The semantics are PEFT's: scale alpha/r, or alpha/sqrt(r) with rsLoRA (arXiv 2312.03732), both overridden per module by
`rank_pattern` and `alpha_pattern`; DoRA (arXiv 2402.09353); whole modules from `modules_to_save`; trained biases; rows of the
embedding from `trainable_token_indices`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import ArtifactRefused, StorageFailed, TuneryError
from tunery.registry.peft.config import check_settings, scale_of

__all__ = [
    "AdapterShape",
    "LoadedAdapter",
    "LowRank",
    "TokenRows",
    "dora_gain",
    "read_adapter",
    "read_config",
]

log = logging.getLogger("tunery.engine")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"  # noqa: S105 - a tensor's name
_ROLE = re.compile(
    r"(?P<module>.+?)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.(?P<leaf>weight|bias))?"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A low-rank pair of one module: `a` [r, in] and `b` [out, r], whose product counts `scale` times; `bias` [out] is `b`'s own.

    `gain` [out] is DoRA's magnitude over the norm of the merged weight (as read: the magnitude alone), or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0
    bias: torch.Tensor | None = None
    gain: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(t.nbytes for t in (self.a, self.b, self.bias, self.gain) if t is not None)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding or head that were trained: `values` [n, hidden] take the place of rows `ids`, int64 [n]."""

    ids: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class LoadedAdapter:
    """An adapter in memory, ready to be applied: everything is keyed by the module's name in the base.

    `replaced` holds whole parameters by module (`weight`, `bias`) that take the place of the base's, `rows` single rows.
    """

    source: AdapterSource
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    rows: dict[str, TokenRows] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of all tensors in bytes, at their true rank; a tensor that two modules share counts once."""
        whole = {id(t): t.nbytes for tensors in self.replaced.values() for t in tensors.values()}
        single = {id(rows): rows.ids.nbytes + rows.values.nbytes for rows in self.rows.values()}
        return sum(whole.values()) + sum(single.values()) + sum(pair.bytes for pair in self.low_rank.values())

    def to(self, device: torch.device) -> LoadedAdapter:
        """A copy on `device`."""
        moved = LoadedAdapter(self.source)
        for name, pair in self.low_rank.items():
            tensors = (None if t is None else t.to(device) for t in (pair.a, pair.b, pair.bias, pair.gain))
            a, b, bias, gain = tensors
            if a is not None and b is not None:
                moved.low_rank[name] = LowRank(a, b, pair.scale, bias, gain)
        seen: dict[int, torch.Tensor] = {}
        for name, whole in self.replaced.items():
            moved.replaced[name] = {leaf: seen.setdefault(id(t), t.to(device)) for leaf, t in whole.items()}
        for name, rows in self.rows.items():
            moved.rows[name] = TokenRows(rows.ids.to(device), rows.values.to(device))
        return moved

    @property
    def plain(self) -> bool:
        """Whether it is a sum of low-rank products and nothing else, so that several of its kind can be added up."""
        return (
            not self.replaced
            and not self.rows
            and all(p.gain is None and p.bias is None for p in self.low_rank.values())
        )


def dora_gain(source: AdapterSource, module: str, pair: LowRank, weight: torch.Tensor) -> torch.Tensor:
    """DoRA's factor per output row, magnitude / ‖W + BA‖ (arXiv 2402.09353, equation 5): float32 [out]; `weight` is W.

    Raise ArtifactRefused when the norm overflows: it would make zeros of whatever the layer is given.
    """
    if pair.gain is None:
        raise ValueError("not a DoRA pair")
    merged = weight.to(pair.b.device) + pair.scale * (pair.b.float() @ pair.a.float())
    norm: torch.Tensor = torch.linalg.vector_norm(merged, dim=1)
    if not norm.isfinite().all():
        raise ArtifactRefused(
            f"{source.title}: the merged weight of {module} is not finite, as its pair or its alpha is too large; train it again",
            code="artifact_nonfinite",
        )
    return pair.gain / norm


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What the base offers to adapters: the parameter shapes of each adaptable module and which head shares the embedding.

    `parameters` maps a module name to {"weight": shape, "bias": shape}; `tied` says that the output head shares the
    embedding's weight. `transposed` modules keep their weight as [in, out]; `fixed` ones (experts, routers) take no adapter.
    """

    parameters: Mapping[str, Mapping[str, tuple[int, ...]]]
    embedding: str
    head: str
    tied: bool
    transposed: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()


def read_config(source: AdapterSource) -> dict[str, Any]:
    """The adapter's configuration, checked for what the engine can apply; raise ArtifactRefused naming what it cannot."""
    try:
        config: dict[str, Any] = json.loads(_content(source, CONFIG))
    except TuneryError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StorageFailed(f"{source.title}: {CONFIG} cannot be read ({type(error).__name__})") from error
    try:
        check_settings(config)
    except ArtifactRefused as error:
        raise ArtifactRefused(f"{source.title}: {error.message}", code=error.code) from error
    return config


def read_adapter(
    source: AdapterSource, shape: AdapterShape, *, dtype: torch.dtype, device: torch.device
) -> LoadedAdapter:
    """Load a version's weights as `dtype` on `device`; raise ArtifactRefused when they do not fit the base exactly."""
    config = read_config(source)
    try:
        # Not load_file: its safe_open (0.8) never gives back two small objects per tensor.
        tensors = load(_content(source, WEIGHTS))
    except TuneryError:
        raise
    except (OSError, SafetensorError) as error:
        raise StorageFailed(f"{source.title}: {WEIGHTS} cannot be read ({error})") from error
    parts, whole = _sort(source, tensors)
    loaded = LoadedAdapter(source)
    _take_rows(loaded, whole, config, shape, dtype, device)
    for module, roles in parts.items():
        pair = _low_rank(source, module, roles, config, shape)
        loaded.low_rank[module] = _placed(pair, dtype, device)
    _tie_pairs(loaded, config, shape)
    for name, tensor in whole.items():
        module, _, leaf = name.rpartition(".")
        module = module.removesuffix(".base_layer")
        _check_whole(source, module, leaf, tensor, shape)
        loaded.replaced.setdefault(module, {})[leaf] = tensor.to(device, dtype)
    if shape.tied and config.get("ensure_weight_tying") and shape.embedding in loaded.replaced:
        loaded.replaced.setdefault(shape.head, loaded.replaced[shape.embedding])
    return loaded


def _tie_pairs(loaded: LoadedAdapter, config: Mapping[str, Any], shape: AdapterShape) -> None:
    """A head that shares the embedding's weight shares its pair, when asked: ΔE = (BA)^T, so the head's is the transpose.

    PEFT saves it a second time, under the head's name, and gives it the scale that the patterns have for that name.
    """
    own = loaded.low_rank.get(shape.embedding)
    if own is None or not (shape.tied and config.get("ensure_weight_tying")):
        return
    tied = LowRank(own.b.T.contiguous(), own.a.T.contiguous(), scale_of(shape.head, config))
    saved = loaded.low_rank.get(shape.head)
    if saved is not None and not (torch.equal(saved.a, tied.a) and torch.equal(saved.b, tied.b)):
        raise ArtifactRefused(
            f"{loaded.source.title} says ensure_weight_tying, and the pairs of {shape.embedding} and {shape.head} differ; "
            "save the adapter again",
            code="artifact_incomplete",
        )
    loaded.low_rank[shape.head] = tied


def _take_rows(
    loaded: LoadedAdapter,
    whole: dict[str, torch.Tensor],
    config: Mapping[str, Any],
    shape: AdapterShape,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Move trained token rows from `whole` to the adapter; a tied head reads the embedding's."""
    indices = config.get("trainable_token_indices") or {}
    if isinstance(indices, list):
        indices = {shape.embedding: indices}
    for key in [key for key in whole if key.endswith(_TOKEN_ROWS)]:
        module, values = key.removesuffix(_TOKEN_ROWS), whole.pop(key)
        ids = next((ids for name, ids in indices.items() if module == name or module.endswith(f".{name}")), None)
        expected = shape.parameters.get(module, {}).get("weight")
        if ids is None or expected is None or tuple(values.shape) != (len(ids), expected[1]) or max(ids) >= expected[0]:
            raise ArtifactRefused(
                f"{loaded.source.title}: the token rows of {module!r} do not fit the base or the configuration",
                code="wrong_base",
            )
        loaded.rows[module] = TokenRows(torch.tensor(ids, device=device), values.to(device, dtype).contiguous())
    if indices and not loaded.rows:
        raise ArtifactRefused(
            f"{loaded.source.title} was configured with trainable_token_indices, and {WEIGHTS} has no such rows",
            code="artifact_truncated",
        )
    if shape.tied and shape.embedding in loaded.rows:
        loaded.rows.setdefault(shape.head, loaded.rows[shape.embedding])


def _sort(
    source: AdapterSource, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Split a PEFT state dict into low-rank parts by module and role, and whole parameters by name."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    _check_finite(source, tensors)
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        match = _ROLE.fullmatch(name)
        if match is None:
            whole[name] = tensor
            continue
        role = match["role"].replace("embedding_", "") + (".bias" if match["leaf"] == "bias" else "")
        parts.setdefault(match["module"], {})[role] = tensor
    return parts, whole


def _check_finite(source: AdapterSource, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactRefused naming a tensor with a value that is no number.

    A sum in double precision is finite exactly when all its parts are, and is found ten times as fast as they are looked at.
    """
    sums = torch.stack([tensor.sum(dtype=torch.float64) for tensor in tensors.values()]) if tensors else torch.empty(0)
    wrong = [key for key, finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not finite]
    if wrong:
        raise ArtifactRefused(f"{source.title}: {wrong[0]} is not finite; train it again", code="artifact_nonfinite")


def _low_rank(
    source: AdapterSource,
    module: str,
    roles: dict[str, torch.Tensor],
    config: Mapping[str, Any],
    shape: AdapterShape,
) -> LowRank:
    """Build one module's pair, checked against the base's shapes."""
    a, b = roles.get("lora_A"), roles.get("lora_B")
    weight = shape.parameters.get(module, {}).get("weight")
    if weight is None:
        raise ArtifactRefused(f"{source.title}: the base has no module {module!r}", code="wrong_base")
    if module in shape.fixed:
        raise _unsupported(source, f"a low-rank pair on {module} (an expert's or a router's weights)")
    if a is None or b is None:
        raise ArtifactRefused(f"{source.title}: {module} has only one half of its pair", code="artifact_truncated")
    fan_in, fan_out = (weight[0], weight[1]) if module == shape.embedding else (weight[1], weight[0])
    if a.shape[1] != fan_in or b.shape[0] != fan_out or a.shape[0] != b.shape[1]:
        raise ArtifactRefused(
            f"{source.title}: {module} is {tuple(b.shape)} x {tuple(a.shape)}, the base's is {weight}",
            code="wrong_base",
        )
    bias = roles.get("lora_B.bias")
    magnitude = roles.get("lora_magnitude_vector")
    if magnitude is not None and module == shape.embedding:
        raise _unsupported(source, f"DoRA on the embedding ({module})")
    if magnitude is None and config.get("use_dora"):
        raise ArtifactRefused(
            f"{source.title}: {module} has no magnitudes, and it is a DoRA", code="artifact_truncated"
        )
    return LowRank(a, b, scale_of(module, config), bias, None if magnitude is None else magnitude.float().flatten())


def _check_whole(source: AdapterSource, module: str, leaf: str, tensor: torch.Tensor, shape: AdapterShape) -> None:
    expected = shape.parameters.get(module, {}).get(leaf)
    if expected is None:
        raise ArtifactRefused(f"{source.title}: the base has no parameter {module}.{leaf}", code="wrong_base")
    if module in shape.fixed:
        raise _unsupported(source, f"weights of its own for {module} (an expert, a router or an attention layer)")
    if leaf == "weight" and module in shape.transposed:
        expected = expected[::-1]
    if tuple(tensor.shape) != tuple(expected):
        raise ArtifactRefused(
            f"{source.title}: {module}.{leaf} is {tuple(tensor.shape)}, the base's is {tuple(expected)}",
            code="wrong_base",
        )


def _placed(pair: LowRank, dtype: torch.dtype, device: torch.device) -> LowRank:
    """The pair in memory as it is served. A gain (and what it multiplies) stays float32."""

    def put(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device, dtype).contiguous()

    gain = None if pair.gain is None else pair.gain.to(device)
    a, b = pair.a.to(device, dtype).contiguous(), pair.b.to(device, dtype).contiguous()
    return LowRank(a, b, pair.scale, put(pair.bias), gain)


def _file(source: AdapterSource, name: str) -> str:
    if name not in source.files:
        raise ArtifactRefused(
            f"{source.title} has no {name}; publish it again as PEFT saves it", code="artifact_truncated"
        )
    return source.files[name]


def _content(source: AdapterSource, name: str) -> bytes:
    """A file's bytes, which are those that its digest was taken of."""
    data = Path(_file(source, name)).read_bytes()
    recorded = source.sha256.get(name)
    if recorded is not None and hashlib.sha256(data).hexdigest() != recorded:
        title = source.title
        log.error("%s is not served: the bytes of %s do not match its digest", title, _file(source, name))
        raise StorageFailed(
            f"{title} is not served: its {name} is damaged in this server's store. `tunery adapters verify {title}` shows what is; "
            "publishing or importing the version again repairs it",
            code="artifact_damaged",
        )
    return data


def _unsupported(source: AdapterSource, what: str) -> ArtifactRefused:
    return ArtifactRefused(f"{source.title} uses {what}, which the engine does not serve", code="unsupported_adapter")
