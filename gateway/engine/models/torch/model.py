"""A base model run by transformers' modelling code, on any device.

Any causal language model of transformers works whose attention goes through the attention interface and whose
parameters are those of linear layers, embeddings and norms. It serves GPUs, architectures that the native decoder does
not compute, and CPUs without the native kernels' instructions; the native decoder is tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from tunery.gateway.engine.adapters.adapter import AdapterShape, LoadedAdapter, LowRank, dora_gain
from tunery.gateway.engine.adapters.reader import read_adapter
from tunery.gateway.engine.composition import AdapterSource
from tunery.gateway.engine.config import EngineConfig
from tunery.gateway.engine.models.interface import DTYPES, Reduction, kv_cache_pages
from tunery.gateway.engine.models.torch.attention import ATTENTION, PagedAttention, register_attention
from tunery.gateway.engine.models.torch.experts import EXPERTS, register_experts
from tunery.gateway.engine.models.torch.forward_context import ForwardContext, SlotSpan
from tunery.gateway.engine.models.torch.kv_cache import KVCache
from tunery.gateway.engine.models.torch.linear import ROW_BLOCK, base_product, is_linear, weight_of
from tunery.gateway.engine.models.torch.lora_layers import adapt_layers, adapter_shape
from tunery.gateway.engine.scheduling.forward_batch import ForwardBatch, Span
from tunery.gateway.engine.scheduling.page_allocator import PAGE_SIZE
from tunery.plugins.bases.architectures import exact_context
from tunery.plugins.quantization import quantization_config
from tunery.registry.errors import ArtifactRefused

__all__ = ["TorchModel", "load_plain"]


class TorchModel:
    """A Model; see models/interface.py. The quantized base, whose layers apply adapters, with its KV cache."""

    def __init__(self, config: EngineConfig) -> None:
        self.argmax_logsumexp: Reduction | None = None
        self.dtype = DTYPES[config.dtype]
        self.device = torch.device(_device(config.device))
        loaded: Any = _load(config, self.dtype, self.device)
        self._module = loaded
        text = loaded.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        longest = int(getattr(text, "max_position_embeddings", None) or 2048)
        longest = min(longest, exact_context(text.to_dict()) or longest)
        self.context_length = min(longest, config.context_length or longest)
        self.base_bytes = sum(tensor.nbytes for tensor in (*self._module.parameters(), *self._module.buffers()))
        self.kv_pages = kv_cache_pages(config, self.context_length)
        self._context = ForwardContext()
        PagedAttention(KVCache((self.kv_pages + 1) * PAGE_SIZE), self._context).install(self._module)
        self._modules = dict(self._module.named_modules())
        self._row_multiple = 1
        adapted = adapt_layers(self._module, self._context)
        self._probe()
        self.shape: AdapterShape = adapter_shape(self._module, adapted)
        # Rows are padded to blocks only where batch invariance is promised.
        self._row_multiple = ROW_BLOCK if self.dtype == torch.float32 and self.device.type == "cpu" else 1

    def read_adapter(self, source: AdapterSource) -> LoadedAdapter:
        """See Model.read_adapter."""
        loaded = read_adapter(source, self.shape, dtype=self.dtype, device=torch.device("cpu"))
        for name, pair in loaded.low_rank.items():
            if pair.gain is not None:
                gain = dora_gain(source, name, pair, weight_of(self._modules[name]))
                loaded.low_rank[name] = LowRank(pair.a, pair.b, pair.scale, pair.bias, gain)
        self._drop_copies(loaded)
        return loaded

    def place_adapter(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """See Model.place_adapter."""
        return adapter if self.device.type == "cpu" else adapter.to(self.device)

    def _probe(self) -> None:
        """Run a batch in the page that is never read, with a number of rows that no other axis of a layer's result has.

        It shows each layer along which axis of its result the rows lie.
        """
        numbers = {
            value for value in self._module.config.get_text_config().to_dict().values() if isinstance(value, int)
        }
        count = next(count for count in range(PAGE_SIZE - 1, 2, -1) if count not in numbers)
        own = np.arange(count, dtype=np.int64)
        span = Span(0, count, count, np.zeros(1, dtype=np.int32))
        self.run(ForwardBatch(own * 0, own, own, (span,), (), (), (), ()))

    def _drop_copies(self, loaded: LoadedAdapter) -> None:
        """Drop replaced parameters that equal the base's; PEFT saves the whole embedding when it is adapted."""
        for name, tensors in list(loaded.replaced.items()):
            own = dict(self._modules[name].named_parameters(recurse=False))
            kept = {leaf: tensor for leaf, tensor in tensors.items() if not _same(tensor, own[leaf])}
            if kept:
                loaded.replaced[name] = kept
            else:
                del loaded.replaced[name]

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """See Model.run."""
        context, rows = self._context, batch.rows
        padding = -len(batch.tokens) % self._row_multiple
        # At least one row, as the head cannot be called with none: a batch may be all prompt.
        short = -len(rows) % self._row_multiple or int(not len(rows))
        context.slots = self._tensor(np.pad(batch.slots, (0, padding)))
        context.spans = tuple(self._span(span) for span in batch.spans)
        context.segments, context.output_segments = batch.segments, batch.output_segments
        try:
            result = self._module(
                input_ids=self._tensor(np.pad(batch.tokens, (0, padding)))[None],
                position_ids=self._tensor(np.pad(batch.positions, (0, padding)))[None],
                use_cache=False,
                logits_to_keep=self._tensor(np.pad(rows, (0, short), constant_values=len(batch.tokens) - 1)),
            )
            hidden, before = context.head_input, context.norm_input
        finally:
            context.clear()
        if hidden is None:
            raise RuntimeError("the base did not call its output head")
        count, final = len(batch.logits), hidden[0, : len(rows)].float()
        broken = _vanished(final, before, self._tensor(rows))
        return result.logits[0, :count].float().masked_fill(broken[:count], torch.nan), final[count:].masked_fill(
            broken[count:], torch.nan
        )

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _span(self, span: Span) -> SlotSpan:
        slots = (span.pages.astype(np.int64)[:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).ravel()[: span.length]
        return SlotSpan(span.start, span.end, self._tensor(slots))


def _vanished(final: torch.Tensor, before: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """Which rows are zero though the last norm's input was not, bool [R, 1]: its sum of squares overflowed."""
    zero = ~final.any(dim=-1, keepdim=True)
    if before is None or before.dim() != 3 or before.shape[-1] != final.shape[-1]:
        return zero & False
    return zero & before[0, rows].any(dim=-1, keepdim=True)


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and torch.equal(tensor, other.to(tensor.device))


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(config: EngineConfig, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load the base through transformers, quantized, in evaluation mode, with paged attention."""
    register_attention()
    register_experts()
    options: dict[str, Any] = {"attn_implementation": ATTENTION}
    if dtype == torch.float32 and device.type == "cpu":
        options["experts_implementation"] = EXPERTS
    return _from_pretrained(config, dtype, device, **options)


def load_plain(config: EngineConfig) -> nn.Module:
    """The same base with transformers' eager attention, as a reference; only its linear products are the engine's."""
    dtype, device = DTYPES[config.dtype], torch.device(_device(config.device))
    module = _from_pretrained(config, dtype, device, attn_implementation="eager")
    for layer in module.modules():
        if is_linear(layer):
            layer.forward = base_product(layer)
    return module


def _from_pretrained(config: EngineConfig, dtype: torch.dtype, device: torch.device, **options: Any) -> nn.Module:
    transformers_logging.disable_progress_bar()
    quantization = quantization_config(config.quant, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.base_folder,
            dtype=dtype,
            device_map={"": str(device)},
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError) as error:
        raise ArtifactRefused(
            f"the base {config.base_name!r} cannot be loaded: {error}", code="unsupported_base"
        ) from error
    module: nn.Module
    module, report = loaded
    if report["missing_keys"]:
        raise ArtifactRefused(
            f"the base {config.base_name!r} has no {min(report['missing_keys'])}; its files are incomplete, or are "
            "not those of the architecture in its config.json: download it again",
            code="unsupported_base",
        )
    return module.eval()
