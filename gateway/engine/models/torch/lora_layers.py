"""Apply every request's adapter to its own rows of a batch, in the layers of a transformers model.

`adapt_layers` replaces the forward of each leaf layer: the base's product runs once over all rows, then each adapter's
LoRA delta is added to its own slice, in place. A layer that an adapter does not change costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tunery.gateway.engine.adapters.adapter import AdapterShape, LowRank, TokenRows
from tunery.gateway.engine.models.torch.forward_context import ForwardContext
from tunery.gateway.engine.models.torch.linear import base_product, batch_invariant_forward, is_linear, is_transposed
from tunery.gateway.engine.scheduling.forward_batch import Segment

__all__ = ["adapter_shape", "adapt_layers"]

_EXPERT = re.compile(r"\.experts\.\d+\.")
"""Matches names of layers whose rows a router has chosen."""
AdaptedLayers = dict[str, "_AdaptedLayer"]
"""Layers that apply adapters, by module name."""


def adapt_layers(model: nn.Module, context: ForwardContext) -> AdaptedLayers:
    """Let every layer that can apply the adapters of the batch in `context`; return those layers by name."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    adapted: AdaptedLayers = {}
    for name, module in _leaf_layers(model):
        if not _is_adaptable(name, module):
            module.forward = batch_invariant_forward(module)
            continue
        kind: type[_AdaptedLayer] = _AdaptedLinear if is_linear(module) else _AdaptedModule
        if module is head:
            kind = _AdaptedHead
        elif isinstance(module, nn.Embedding):
            kind = _AdaptedEmbedding
        module.forward = adapted[name] = kind(name, module, context)
    return adapted


def adapter_shape(model: nn.Module, adapted: AdaptedLayers) -> AdapterShape:
    """What `model`, which has run a batch, offers to adapters; shapes are those of the weights before quantization."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    parameters = {}
    transposed = frozenset(name for name, module in _leaf_layers(model) if is_transposed(module))
    fixed = frozenset(name for name, _ in _leaf_layers(model) if name not in adapted or adapted[name].row_axis is None)
    for name, module in _leaf_layers(model):
        shapes = {leaf: tuple(parameter.shape) for leaf, parameter in module.named_parameters()}
        if is_transposed(module):
            shapes["weight"] = shapes["weight"][::-1]
        elif is_linear(module):
            shapes["weight"] = (module.out_features, module.in_features)  # type: ignore[assignment]
        parameters[name] = shapes
    tied = head.weight is embedding.weight
    return AdapterShape(parameters, names[embedding], names[head], tied, transposed, fixed)


def _leaf_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that have parameters themselves: linear layers, embeddings and norms."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]


def _is_adaptable(name: str, module: nn.Module) -> bool:
    """Whether a layer's rows are the batch's: not where a router has chosen them or there are several results."""
    if is_linear(module):
        return _EXPERT.search(name) is None
    own = all(p.dim() == 1 for p in module.parameters()) or "norm" in type(module).__name__.lower()
    return isinstance(module, nn.Embedding) or (own and not any(module.children()))


class _AdaptedLayer:
    """A layer's forward: the base's result, then `adapt` for each segment whose adapter changes this layer."""

    def __init__(self, name: str, module: nn.Module, context: ForwardContext) -> None:
        self._name = name
        self._module = module
        self._context = context
        self.row_axis: int | None = None
        """The axis of a result along which the batch's rows lie; None before the first batch, or if there is none."""
        self._base: Callable[..., torch.Tensor] = base_product(module) if is_linear(module) else module.forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The layer's own result for `inputs`, the first of which, or of the `options`, is its input.

        That is [1, T, in]; beside a router [T, in], and for a norm of heads [1, T, heads, size] or [1, heads, T, size].
        """
        y = self._base(*inputs, **options)
        segments = self.segments()
        if self.row_axis is None:
            self.row_axis = self.find_row_axis(y)
        if not segments or self.row_axis is None:
            return y
        x = inputs[0] if inputs else next(iter(options.values()))
        for segment in segments:
            rows = (slice(None),) * self.row_axis + (slice(segment.start, segment.end),)
            pair = segment.adapter.low_rank.get(self._name)
            whole = segment.adapter.replaced.get(self._name)
            if pair is not None and segment.weight != 1.0:
                pair = replace(pair, scale=pair.scale * segment.weight)
            if pair is not None or whole is not None:
                y[rows] = self.adapt(x[rows], y[rows], pair, whole)
            single = segment.adapter.rows.get(self._name)
            if single is not None:
                y[rows] = self.replace_rows(x[rows], y[rows], single)
        return y

    def find_row_axis(self, y: torch.Tensor) -> int | None:
        """The one axis of a result, other than its last, that is as long as the batch has rows."""
        slots = self._context.slots
        axes = [axis for axis, size in enumerate(y.shape[:-1]) if slots is not None and size == slots.shape[0]]
        return axes[0] if len(axes) == 1 else None

    def segments(self) -> tuple[Segment, ...]:
        """Which rows of the input run through which adapter."""
        return self._context.segments

    def adapt(
        self, x: torch.Tensor, y: torch.Tensor, pair: LowRank | None, whole: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """The adapter's result for its n rows, from the input `x` [1, n, in] and the base's result `y` [1, n, out]."""
        raise NotImplementedError

    def replace_rows(self, x: torch.Tensor, y: torch.Tensor, rows: TokenRows) -> torch.Tensor:
        """The result with single rows of the layer's weight replaced."""
        raise NotImplementedError


class _AdaptedLinear(_AdaptedLayer):
    def adapt(
        self, x: torch.Tensor, y: torch.Tensor, pair: LowRank | None, whole: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        bias: Any = self._module.bias
        if whole is not None and "weight" in whole:
            weight = whole["weight"]
            y = functional.linear(x, weight.T if is_transposed(self._module) else weight, bias)
        if pair is not None:
            y = _add_lora(x, y, pair, bias)
        if whole is not None and "bias" in whole:
            y = y + (whole["bias"] - (0 if bias is None else bias))
        return y


class _AdaptedHead(_AdaptedLinear):
    """The output head: its rows are the batch's output rows, and its input the final hidden states."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        self._context.head_input = inputs[0]
        return super().__call__(*inputs, **options)

    def find_row_axis(self, y: torch.Tensor) -> int | None:
        return y.dim() - 2

    def segments(self) -> tuple[Segment, ...]:
        return self._context.output_segments

    def replace_rows(self, x: torch.Tensor, y: torch.Tensor, rows: TokenRows) -> torch.Tensor:
        return y.index_copy(-1, rows.ids, functional.linear(x, rows.values).to(y.dtype))


class _AdaptedEmbedding(_AdaptedLayer):
    def adapt(
        self, x: torch.Tensor, y: torch.Tensor, pair: LowRank | None, whole: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        # Gemma multiplies its embeddings by a constant inside the layer.
        scale: Any = getattr(self._module, "embed_scale", 1.0)
        if whole is not None:
            y = functional.embedding(x, whole["weight"]) * scale
        if pair is not None:
            y = y + functional.linear(functional.embedding(x, pair.a.T), pair.b) * (pair.scale * scale)
        return y.to(self._module.weight.dtype)  # type: ignore[arg-type]

    def replace_rows(self, x: torch.Tensor, y: torch.Tensor, rows: TokenRows) -> torch.Tensor:
        scale: Any = getattr(self._module, "embed_scale", 1.0)
        match = x[..., None] == rows.ids
        own = rows.values[match.int().argmax(-1)] * scale
        return torch.where(match.any(-1, keepdim=True), own.to(y.dtype), y)


class _AdaptedModule(_AdaptedLayer):
    """Anything else with parameters, for example a norm: run again with the adapter's own parameters."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        self._context.norm_input = inputs[0] if inputs else next(iter(options.values()), None)
        return super().__call__(*inputs, **options)

    def adapt(
        self, x: torch.Tensor, y: torch.Tensor, pair: LowRank | None, whole: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        if whole is None:
            return y
        module = _copy_of(self._module)
        module._parameters = {
            **module._parameters,
            **{leaf: nn.Parameter(t, requires_grad=False) for leaf, t in whole.items()},
        }
        return module(x)  # type: ignore[no-any-return]


def _copy_of(module: nn.Module) -> nn.Module:
    """A shallow copy of `module` with its class's own forward."""
    copy = module.__class__.__new__(module.__class__)
    copy.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    return copy


def _add_lora(x: torch.Tensor, y: torch.Tensor, pair: LowRank, bias: torch.Tensor | None) -> torch.Tensor:
    """Add a LoRA delta: y + sBAx (arXiv 2106.09685), or with a DoRA gain g: g (y - b + sBAx) + b."""
    a, b, bias_delta = pair.a, pair.b, pair.bias
    if x.device.type == "cpu":
        # On CPUs, torch takes a hundred times as long for a product over a rank of 16 in bfloat16 as in float32.
        x, a, b = x.float(), a.float(), b.float()
        bias_delta = None if bias_delta is None else bias_delta.float()
    delta = functional.linear(functional.linear(x, a), b, bias_delta) * pair.scale
    if pair.gain is None:
        return y + delta
    bare = y if bias is None else y - bias
    scaled = (bare + delta) * pair.gain
    return (scaled if bias is None else scaled + bias).to(y.dtype)
