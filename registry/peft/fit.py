"""Check that every tensor of an adapter belongs to a module of its base, has the right shape, and would be used."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tunery.registry.errors import ArtifactRefused
from tunery.registry.peft.base_shapes import HEAD, BaseShapes
from tunery.registry.peft.config import AdapterConfig, is_vocabulary
from tunery.registry.peft.layout import CONFIG, WEIGHTS, PairKeys, read_layout
from tunery.registry.peft.renaming import unknown_parameter
from tunery.registry.peft.safetensors_header import TensorEntry

__all__ = ["check_fit"]

_FLOATS = ("F16", "BF16", "F32", "F64")

Shape = tuple[int, ...]


def check_fit(tensors: Mapping[str, TensorEntry], config: AdapterConfig, base: BaseShapes) -> None:
    """Raise ArtifactRefused unless an adapter's tensors, by key, fit the base and the configuration exactly.

    Codes: wrong_base, vocabulary_changed, unsupported_adapter, and artifact_incomplete for what is missing or would not
    be used.
    """
    for key, entry in tensors.items():
        if entry.dtype not in _FLOATS:
            raise ArtifactRefused(
                f"{key} is {entry.dtype}; adapters hold {', '.join(_FLOATS)}", code="unsupported_adapter"
            )
    layout = read_layout(tensors)
    if config.trainable_token_indices and not layout.token_rows:
        raise _incomplete(
            f"{CONFIG} has trainable_token_indices, and {WEIGHTS} has no such rows; save the adapter again"
        )
    for module, key in layout.token_rows.items():
        _check_rows(key, module, tensors[key].shape, config, base)
    for parameter, key in layout.parameters.items():
        _check_parameter(key, parameter, tensors[key].shape, config, base)
    if not layout.pairs:
        raise _incomplete(f"{WEIGHTS} holds no LoRA weights")
    for module, pair in layout.pairs.items():
        _PairCheck(module, pair, tensors, config, base).run()


def _check_parameter(key: str, parameter: str, shape: Shape, config: AdapterConfig, base: BaseShapes) -> None:
    expected = base.shapes.get(parameter)
    if expected is None:
        raise _unknown(parameter, base)
    if expected != shape:
        raise _other_size(key, shape, expected, base)
    if not config.loads_whole(parameter):
        raise _unused(key, "modules_to_save")


def _check_rows(key: str, module: str, shape: Shape, config: AdapterConfig, base: BaseShapes) -> None:
    """One row of the module's weight for each token id that the configuration names."""
    weight, tokens = base.shapes.get(f"{module}.weight"), config.token_ids_of(module)
    if weight is None or len(weight) != 2:
        raise _misfit(key, shape, weight, base)
    if tokens is None:
        raise _unused(key, "trainable_token_indices")
    if shape != (len(tokens), weight[1]):
        raise _misfit(f"{key} for {len(tokens)} tokens", shape, weight, base)
    added = sum(token >= weight[0] for token in tokens)
    if added:
        raise _resized(key, added, weight[0], base)


class _PairCheck:
    """The checks of one module's low-rank pair."""

    def __init__(
        self, module: str, pair: PairKeys, tensors: Mapping[str, TensorEntry], config: AdapterConfig, base: BaseShapes
    ) -> None:
        self.module, self.pair, self.config, self.base = module, pair, config, base
        self.a, self.b, self.bias, self.magnitude = (
            None if key is None else tensors[key].shape for key in (pair.a, pair.b, pair.bias, pair.magnitude)
        )

    def run(self) -> None:
        weight = self.base.shapes.get(f"{self.module}.weight")
        if weight is None:
            raise _unknown(f"{self.module}.weight", self.base)
        if self.a is None or self.b is None:
            raise _incomplete(f"{self.module} has only one half of its low-rank pair")
        if len(self.a) != 2 or len(self.b) != 2 or self.a[0] != self.b[1] or self.a[0] == 0:
            raise _incomplete(f"{self.module}: lora_A {self.a} and lora_B {self.b} do not make a product")
        self._check_shape((self.b[0], self.a[1]), weight)
        self._check_vector("lora_magnitude_vector", self.magnitude, self.b[0], "use_dora", self.config.use_dora)
        self._check_vector("lora_B.bias", self.bias, self.b[0], "lora_bias", self.config.lora_bias)
        self._check_dora()
        self._check_rank(self.a[0])

    def _check_shape(self, product: Shape, weight: Shape) -> None:
        """An embedding's pair is that of its transpose; with fan_in_fan_out (GPT-2), so are some linear layers'."""
        if self.pair.embedding:
            fitting: tuple[Shape, ...] = (product[::-1],)
        else:
            fitting = (product, product[::-1]) if self.config.fan_in_fan_out else (product,)
        if weight not in fitting:
            raise _other_size(self.module, fitting[0], weight, self.base)

    def _check_vector(self, role: str, shape: Shape | None, out: int, field: str, used: bool) -> None:
        if shape is None:
            return
        if prod(shape) != out:
            raise _misfit(f"{self.module}.{role}", shape, (out,), self.base)
        if not used:
            raise _incomplete(
                f"{self.module}.{role} would not be used: {CONFIG} does not say {field}; save the adapter again"
            )

    def _check_dora(self) -> None:
        if not self.config.use_dora:
            return
        if self.pair.embedding:
            raise ArtifactRefused(
                f"{self.module} is an embedding with use_dora, which the engine does not serve; train it without",
                code="unsupported_adapter",
            )
        if self.magnitude is None:
            raise _incomplete(
                f"{self.module} has no lora_magnitude_vector, and {CONFIG} says use_dora; save the adapter again"
            )

    def _check_rank(self, rank: int) -> None:
        # PEFT saves the embedding's pair a second time for a head that shares its weight, and names that nowhere.
        if f"{self.module}.weight" == HEAD and self.base.tied and self.config.ensure_weight_tying:
            return
        if not self.config.is_target(self.module):
            raise _unused(self.module, "target_modules")
        expected = self.config.rank_of(self.module)
        if rank != expected:
            raise _incomplete(
                f"{self.module} has rank {rank}, and {CONFIG} says {expected}: its scale would be wrong; "
                "save the adapter again"
            )


def _incomplete(message: str) -> ArtifactRefused:
    return ArtifactRefused(message, code="artifact_incomplete")


def _unused(name: str, field: str) -> ArtifactRefused:
    return _incomplete(f"{name} would not be used: {CONFIG} does not name it in {field}; save the adapter again")


def _misfit(name: str, shape: Shape, expected: Shape | None, base: BaseShapes) -> ArtifactRefused:
    has = "has no such parameter" if expected is None else f"has {expected}"
    return ArtifactRefused(
        f"{name} {shape} does not fit {base.base}, which {has}: it was trained on another base", code="wrong_base"
    )


def _other_size(name: str, shape: Shape, expected: Shape, base: BaseShapes) -> ArtifactRefused:
    """The error for a tensor with another number of rows than the base's, or another width."""
    if len(expected) == len(shape) == 2 and shape[1] == expected[1] and is_vocabulary(name):
        return _resized(name, shape[0] - expected[0], expected[0], base)
    return _misfit(name, shape, expected, base)


def _resized(name: str, more: int, rows: int, base: BaseShapes) -> ArtifactRefused:
    """The error for an adapter whose base had tokens added (or padding cut off) before training."""
    counted = f"{abs(more):,} {'token was' if abs(more) == 1 else 'tokens were'}"
    changed = f"{counted} added to" if more > 0 else f"{counted} cut off"
    return ArtifactRefused(
        f"{name}: {changed} the {rows:,} of {base.base} before training, and adapters are served on the base's own "
        "vocabulary. Save the base with its vocabulary changed, add that (tunery bases add FOLDER) and import on it, "
        "or train without changing the vocabulary",
        code="vocabulary_changed",
    )


def _unknown(parameter: str, base: BaseShapes) -> ArtifactRefused:
    why = unknown_parameter(parameter, base.shapes)
    if why is not None:
        return _incomplete(f"{base.base} has no {parameter}: {why}")
    return ArtifactRefused(
        f"{parameter} does not fit {base.base}, which has no such parameter: it was trained on another base",
        code="wrong_base",
    )
