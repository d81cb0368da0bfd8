"""Read a version's PEFT files into the tensors that a model applies, and refuse what it would not apply exactly.

What the configuration and the tensors' keys mean is said by `registry.peft`; the files were checked there before they
were published, and are checked here against the base as it was loaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from tunery.gateway.engine.adapters.adapter import AdapterShape, LoadedAdapter, LowRank, TokenRows
from tunery.gateway.engine.composition import AdapterSource
from tunery.registry.errors import ArtifactRefused, StorageFailed, TuneryError
from tunery.registry.peft.config import AdapterConfig, decode_config, parse_config
from tunery.registry.peft.layout import CONFIG, WEIGHTS, AdapterLayout, PairKeys, read_layout

__all__ = ["read_adapter", "read_config"]

log = logging.getLogger("tunery.engine")


def read_config(source: AdapterSource) -> AdapterConfig:
    """A version's configuration; raise ArtifactRefused for a setting that is not applied, StorageFailed for bad
    JSON.
    """
    try:
        data = _content(source, CONFIG)
    except TuneryError:
        raise
    except OSError as error:
        raise StorageFailed(f"{source.title}: {CONFIG} cannot be read ({type(error).__name__})") from error
    try:
        fields = decode_config(data)
    except ArtifactRefused as error:
        raise StorageFailed(f"{source.title}: {error.message}") from error
    try:
        return parse_config(fields)
    except ArtifactRefused as error:
        raise ArtifactRefused(f"{source.title}: {error.message}", code=error.code) from error


def read_adapter(
    source: AdapterSource, shape: AdapterShape, *, dtype: torch.dtype, device: torch.device
) -> LoadedAdapter:
    """Load a version's weights as `dtype` on `device`.

    Raise ArtifactRefused when they do not fit the base exactly (wrong_base, artifact_truncated, artifact_incomplete,
    artifact_nonfinite, unsupported_adapter), and StorageFailed when a file is damaged or cannot be read.
    """
    config = read_config(source)
    tensors = _read_tensors(source)
    _check_finite(source, tensors)
    try:
        layout = read_layout(tensors)
    except ArtifactRefused as error:
        raise ArtifactRefused(f"{source.title}: {error.message}", code=error.code) from error
    return _Reading(source, shape, config, layout, tensors, dtype, device).adapter()


@dataclass(frozen=True, slots=True)
class _Reading:
    """One version's tensors on their way into memory."""

    source: AdapterSource
    shape: AdapterShape
    config: AdapterConfig
    layout: AdapterLayout
    tensors: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    device: torch.device

    def adapter(self) -> LoadedAdapter:
        loaded = LoadedAdapter(self.source, rows=self._rows())
        for module, keys in self.layout.pairs.items():
            loaded.low_rank[module] = self._placed(self._pair(module, keys))
        if self._is_tied and self.shape.embedding in loaded.low_rank:
            loaded.low_rank[self.shape.head] = self._head_pair(loaded)
        for parameter, key in self.layout.parameters.items():
            module, _, leaf = parameter.rpartition(".")
            self._check_parameter(module, leaf, self.tensors[key])
            loaded.replaced.setdefault(module, {})[leaf] = self.tensors[key].to(self.device, self.dtype)
        if self._is_tied and self.shape.embedding in loaded.replaced:
            loaded.replaced.setdefault(self.shape.head, loaded.replaced[self.shape.embedding])
        return loaded

    @property
    def _is_tied(self) -> bool:
        """Whether the head shares the embedding's weight and the adapter's changes to it."""
        return self.shape.tied and self.config.ensure_weight_tying

    def _head_pair(self, loaded: LoadedAdapter) -> LowRank:
        """The pair of a head that shares the embedding's: ΔE = (BA)ᵀ, so the head's is the transpose.

        PEFT saves it a second time, under the head's name, and gives it the scale that the patterns have for that name.
        """
        embedding, saved = loaded.low_rank[self.shape.embedding], loaded.low_rank.get(self.shape.head)
        scale = self.config.scale_of(self.shape.head)
        pair = LowRank(embedding.b.T.contiguous(), embedding.a.T.contiguous(), scale)
        if saved is not None and not (torch.equal(saved.a, pair.a) and torch.equal(saved.b, pair.b)):
            raise ArtifactRefused(
                f"{self.source.title} says ensure_weight_tying, and the pairs of {self.shape.embedding} and "
                f"{self.shape.head} differ; save the adapter again",
                code="artifact_incomplete",
            )
        return pair

    def _rows(self) -> dict[str, TokenRows]:
        """Trained token rows by module; a tied head reads the embedding's."""
        rows: dict[str, TokenRows] = {}
        for module, key in self.layout.token_rows.items():
            ids, values = self.config.token_ids_of(module, embedding=self.shape.embedding), self.tensors[key]
            weight = self.shape.parameters.get(module, {}).get("weight")
            if (
                ids is None
                or weight is None
                or tuple(values.shape) != (len(ids), weight[1])
                or max(ids, default=0) >= weight[0]
            ):
                raise self._refusal(
                    f"the token rows of {module!r} do not fit the base or the configuration", "wrong_base"
                )
            placed = values.to(self.device, self.dtype).contiguous()
            rows[module] = TokenRows(torch.tensor(ids, dtype=torch.int64, device=self.device), placed)
        if self.config.trainable_token_indices and not rows:
            raise ArtifactRefused(
                f"{self.source.title} was configured with trainable_token_indices, and {WEIGHTS} has no such rows",
                code="artifact_truncated",
            )
        if self.shape.tied and self.shape.embedding in rows:
            rows.setdefault(self.shape.head, rows[self.shape.embedding])
        return rows

    def _pair(self, module: str, keys: PairKeys) -> LowRank:
        """One module's pair as it was saved, checked against the base's shapes."""
        a, b, bias, magnitude = (
            None if key is None else self.tensors[key] for key in (keys.a, keys.b, keys.bias, keys.magnitude)
        )
        weight = self.shape.parameters.get(module, {}).get("weight")
        if weight is None:
            raise self._refusal(f"the base has no module {module!r}", "wrong_base")
        if module in self.shape.fixed:
            raise self._unsupported(f"a low-rank pair on {module} (an expert's or a router's weights)")
        if a is None or b is None:
            raise self._refusal(f"{module} has only one half of its pair", "artifact_truncated")
        fan_in, fan_out = weight if keys.embedding else (weight[1], weight[0])
        fits = (a.shape[1], b.shape[0], a.shape[0]) == (fan_in, fan_out, b.shape[1])
        if not fits or keys.embedding != (module == self.shape.embedding):
            raise self._refusal(
                f"{module} is {tuple(b.shape)} x {tuple(a.shape)}, the base's is {weight}", "wrong_base"
            )
        if magnitude is not None and keys.embedding:
            raise self._unsupported(f"DoRA on the embedding ({module})")
        if magnitude is None and self.config.use_dora:
            raise self._refusal(
                f"{module} has no lora_magnitude_vector, and the adapter is a DoRA", "artifact_truncated"
            )
        gain = None if magnitude is None else magnitude.float().flatten()
        return LowRank(a, b, self.config.scale_of(module), bias, gain)

    def _placed(self, pair: LowRank) -> LowRank:
        """The pair in memory as it is served. A gain (and what it multiplies) stays float32."""
        a, b, bias = (
            None if t is None else t.to(self.device, self.dtype).contiguous() for t in (pair.a, pair.b, pair.bias)
        )
        gain = None if pair.gain is None else pair.gain.to(self.device)
        if a is None or b is None:
            raise ValueError("a pair has both halves")
        return LowRank(a, b, pair.scale, bias, gain)

    def _check_parameter(self, module: str, leaf: str, tensor: torch.Tensor) -> None:
        expected = self.shape.parameters.get(module, {}).get(leaf)
        if expected is None:
            raise self._refusal(f"the base has no parameter {module}.{leaf}", "wrong_base")
        if module in self.shape.fixed:
            raise self._unsupported(f"whole weights for {module} (an expert, a router or an attention layer)")
        if leaf == "weight" and module in self.shape.transposed:
            expected = expected[::-1]
        if tuple(tensor.shape) != tuple(expected):
            raise self._refusal(
                f"{module}.{leaf} is {tuple(tensor.shape)}, the base's is {tuple(expected)}", "wrong_base"
            )

    def _refusal(self, what: str, code: str) -> ArtifactRefused:
        return ArtifactRefused(f"{self.source.title}: {what}", code=code)

    def _unsupported(self, what: str) -> ArtifactRefused:
        return ArtifactRefused(
            f"{self.source.title} uses {what}, which the engine does not serve", code="unsupported_adapter"
        )


def _read_tensors(source: AdapterSource) -> dict[str, torch.Tensor]:
    try:
        # Not load_file: its safe_open (0.8) never gives back two small objects per tensor.
        return load(_content(source, WEIGHTS))
    except TuneryError:
        raise
    except (OSError, SafetensorError) as error:
        raise StorageFailed(f"{source.title}: {WEIGHTS} cannot be read ({error})") from error


def _check_finite(source: AdapterSource, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactRefused (artifact_nonfinite) naming a tensor with a value that is not a number or infinite.

    A sum in double precision is finite exactly when all its terms are, and takes a tenth of the time of looking at
    each.
    """
    sums = torch.stack([tensor.sum(dtype=torch.float64) for tensor in tensors.values()]) if tensors else torch.empty(0)
    nonfinite = [key for key, finite in zip(tensors, sums.isfinite().tolist(), strict=True) if not finite]
    if nonfinite:
        raise ArtifactRefused(
            f"{source.title}: {nonfinite[0]} is not finite; train it again", code="artifact_nonfinite"
        )


def _content(source: AdapterSource, name: str) -> bytes:
    """A file's bytes; raise StorageFailed (artifact_damaged) where they do not match the recorded digest."""
    if name not in source.files:
        raise ArtifactRefused(
            f"{source.title} has no {name}; publish it again as PEFT saves it", code="artifact_truncated"
        )
    data = Path(source.files[name]).read_bytes()
    recorded = source.sha256.get(name)
    if recorded is not None and hashlib.sha256(data).hexdigest() != recorded:
        title = source.title
        log.error("%s is not served: the bytes of %s do not match its digest", title, source.files[name])
        raise StorageFailed(
            f"{title} is not served: its {name} is damaged in this server's store. `tunery adapters verify {title}` "
            "shows the details; publish or import the version again to repair it",
            code="artifact_damaged",
        )
    return data
